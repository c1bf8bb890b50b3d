"""Whether the user's class can carry out a plan, and which dimensions it cannot take, by trial."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch

from ..inference.graph import Graph
from ..ir.terms import Var
from ..rewrite.folds import Fold
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept
from ..verify.backends import (
    back_end_tolerance,
    example_calls,
    module_error,
    reference_outputs,
    training_break,
)
from .attribute_search import MAX_TRIALS
from .class_needs import Needs, stated_needs
from .module_backend import ModuleResult, build_module

QUICK = 8  # trials of attributes where many plans are tried
PLANS = 24  # that are tried, at most, to find what stands in the way

Holds = Callable[[Kept], bool]


def try_class(
    graph: Graph, kept: Kept, folds: Sequence[Fold] = (), trials: int = MAX_TRIALS
) -> ModuleResult:
    """What the module back end makes of a plan; nothing of it is kept. With fewer trials only the
    example inputs are compared, and train mode is not."""
    calls = example_calls(graph)
    dense = rewrite(graph, kept, folds)
    quick = trials < MAX_TRIALS
    calls = calls[:1] if quick else calls
    compare = partial(module_error, dense, calls=calls, expected=reference_outputs(dense, calls))
    built = build_module(graph, dense, kept, compare, back_end_tolerance(dense), trials)
    if built.module is None or quick:
        return built
    why = training_break(dense, built.module, calls[0])
    return ModuleResult(None, {}, f"the module breaks in train mode: {why}") if why else built


def holds(graph: Graph, kept: Kept, trials: int = QUICK) -> bool:
    """Whether the class can carry out a plan."""
    return not kept or try_class(graph, kept, trials=trials).module is not None


def find_needs(graph: Graph, kept: Kept) -> Needs | None:
    """What has to be tied or left whole so that a plan like this one, which the class cannot carry
    out, keeps it; None where nothing helps.

    First what the program states; then plans are tried, at most `PLANS`, that grow by one half of
    the dimensions after another: those that cannot be added are left whole, or tied to those of
    their size where that is enough.
    """
    tried: dict[object, bool] = {}

    def works(part: Kept) -> bool:
        key = frozenset((v.serial, tuple(own.tolist())) for v, own in part.items())
        if key not in tried and len(tried) < PLANS:
            tried[key] = holds(graph, part)
        return tried.get(key, False)

    needs = stated_needs(graph)
    for stated in (dataclasses.replace(needs, whole=frozenset()), needs):
        start = leveled(graph, kept, stated)
        if start and stated and works(start):
            return stated
    start = leveled(graph, kept, needs)
    good, bad = _grown(graph, start, needs, works)
    if not good:
        return None
    names = {d.var: d.name for d in graph.prunable.values()}
    again = [names[v] for v in bad]
    tied = needs.with_ties(_of_one_size(graph, again, start))
    if tied != needs and works(leveled(graph, kept, tied)):
        return tied
    return needs.with_whole(again)


def leveled(graph: Graph, kept: Kept, needs: Needs) -> dict[Var, torch.Tensor]:
    """A plan without what is to be left whole, and with equal widths of what is tied: the fewest
    entries, the first of those kept; with more entries where widths are multiples."""
    by_name = graph.dimensions
    found = dict(kept)
    for name in needs.whole & by_name.keys():
        found.pop(by_name[name].var, None)  # type: ignore[call-overload]
    for group in needs.ties:
        own = [by_name[n] for n in group if n in by_name]
        width = min((len(found.get(d.var, range(d.size))) for d in own), default=0)  # type: ignore[arg-type]
        for d in own:
            if d.var is not None and width < d.size:
                found[d.var] = found.get(d.var, torch.arange(d.size))[:width]
    for name in dict(needs.multiples).keys() & by_name.keys():
        for d in (by_name[n] for n in needs.tied(name) if n in by_name):
            if d.var is not None and d.var in found:
                found[d.var] = _filled(found[d.var], d.size, needs.multiple(name))
    return found


def _filled(kept: torch.Tensor, size: int, multiple: int) -> torch.Tensor:
    """Kept indices and the first of the others, a multiple of entries."""
    more = min(math.ceil(len(kept) / multiple) * multiple, size) - len(kept)
    gone = torch.ones(size, dtype=torch.bool)
    gone[kept] = False
    return torch.cat([kept, gone.nonzero().reshape(-1)[:more].to(kept)]).sort().values


def _grown(
    graph: Graph, kept: Kept, needs: Needs, works: Holds
) -> tuple[dict[Var, torch.Tensor], list[Var]]:
    """The part of a plan that works, and the variables that could not be added to it."""
    good: dict[Var, torch.Tensor] = {}
    bad: list[Var] = []

    def add(groups: Sequence[Collection[Var]]) -> None:
        more = {v: kept[v] for group in groups for v in group}
        if works({**good, **more}):
            good.update(more)
        elif len(groups) == 1:
            bad.extend(groups[0])
        else:
            middle = len(groups) // 2
            add(groups[:middle])
            add(groups[middle:])

    groups = _groups(graph, kept, needs)
    if groups:
        add(groups)
    return good, bad


def _groups(graph: Graph, kept: Kept, needs: Needs) -> list[list[Var]]:
    """The dimensions of a plan in sets that stand or fall together: those tied, and those of one
    kind and size; the largest dimensions first."""
    found: dict[object, list[Var]] = {}
    for d in sorted(graph.prunable.values(), key=lambda d: -d.size):
        if d.var is None or d.var not in kept:
            continue
        group = needs.tied(d.name)
        key = group if len(group) > 1 else (d.kind, d.size)
        found.setdefault(key, []).append(d.var)
    return list(found.values())


def _of_one_size(graph: Graph, names: Sequence[str], kept: Kept) -> list[list[str]]:
    """For each size of these dimensions all planned dimensions of that size."""
    sizes = {graph.dimensions[n].size for n in names}
    planned = [d for d in graph.prunable.values() if d.var in kept]
    return [[d.name for d in planned if d.size == size] for size in sorted(sizes)]
