"""Where the user's class cannot take a plan: which dimensions stand in its way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..inference.dimensions import Dimension, width_of
from ..inference.graph import Graph
from ..ir.program import source_line
from ..ir.terms import Product, Var, resolve, variables
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept
from ..verify.backends import back_end_tolerance, example_calls, module_error
from .module_backend import build_module

_ATTEMPTS = 5  # each rewrites the model once
_HEADS = ("head", "kv-head", "query-group", "head-dim")
_TRIALS = 4  # of attributes, per attempt: what the evidence speaks for
_NAMED = 3


def obstacle(
    graph: Graph, kept: Kept, lines: Sequence[str], planned: Kept | None = None
) -> str:
    """One sentence: the dimensions of a plan without which the module back end would hold, the
    width that has to fit the heads, or what was already dead; '' where none is the cause. `kept`:
    the plan; `lines`: the user's lines that raised; `planned`: the plan without entries and
    constants that were already dead, where it is another."""
    if planned is not None and _holds(graph, planned):
        return (
            "without what is already dead it holds: dead=False of sparse-to-dense keeps the class"
        )
    tied = _tied(graph, kept)
    if tied and _holds(graph, {**kept, **tied}):
        names = ", ".join(
            f"'{d.name}' cut to {len(tied[d.var])}"
            for d in graph.prunable.values()
            if d.var is not None and d.var in tied
        )
        return f"with {names} (heads x head width, which it reads from there) it holds"
    for number, group in enumerate(_suspects(graph, kept, lines)):
        if number == _ATTEMPTS:
            break
        rest = {var: entries for var, entries in kept.items() if var not in group}
        if rest and _holds(graph, rest):
            return _said(graph, kept, group)
    return ""


def _holds(graph: Graph, kept: Kept) -> bool:
    """Whether the module back end can carry out a plan."""
    calls = example_calls(graph)[:1]
    dense = rewrite(graph, kept)
    tolerance = back_end_tolerance(dense)
    compare = partial(module_error, dense, calls=calls)
    return build_module(graph, dense, kept, compare, tolerance, _TRIALS).module is not None


def _tied(graph: Graph, kept: Kept) -> dict[Var, Tensor]:
    """The widths a module may use for heads x head width, as large as that now is: forward that
    reshapes to the width of its input needs the two to agree."""
    heads = {d.var for d in graph.prunable.values() if d.kind in _HEADS}
    sizes = {var: len(entries) for var, entries in kept.items()}
    products: dict[int, set[int]] = defaultdict(set)
    for terms in graph.axes.values():
        for term in map(resolve, terms):
            if isinstance(term, Product) and heads.intersection(variables(term)):
                products[term.size or 0].add(width_of(term, sizes))
    found: dict[Var, Tensor] = {}
    for d in graph.prunable.values():
        new = products.get(d.size, set())
        if d.var is None or d.kind in _HEADS or len(new) != 1:
            continue
        count = next(iter(new))
        if count not in (d.size, len(kept.get(d.var, range(d.size)))):
            found[d.var] = torch.arange(count)
    return found


def _suspects(graph: Graph, kept: Kept, lines: Sequence[str]) -> Iterator[set[Var]]:
    """Sets of planned dimensions, the likeliest first: those whose values are made from a size,
    those on a line that raised, those of a kind."""
    by_var = {d.var: d for d in graph.prunable.values() if d.var in kept}
    tried: list[set[Var]] = [set()]
    for found in _touched(graph, lines):
        for kind in sorted({by_var[v].kind for v in found if v in by_var}):
            group = {v for v in found if v in by_var and by_var[v].kind == kind}
            if group not in tried:
                tried.append(group)
                yield group
    for kind in sorted({d.kind for d in by_var.values()}):
        group = {d.var for d in by_var.values() if d.kind == kind and d.var is not None}
        if group not in tried:
            tried.append(group)
            yield group


def _touched(graph: Graph, lines: Sequence[str]) -> Iterator[set[Var]]:
    """The variables of generated values, and of the values made on each of the lines."""
    inference = graph.inference
    yield {v for terms in inference.generated.values() for t in terms for v in variables(t)}
    for line in lines:
        found: set[Var] = set()
        for node in graph.program.graph.nodes:
            if source_line(node) == line and isinstance(terms := inference.terms.get(node), list):
                found.update(v for term in terms for v in variables(term))
        yield found


def _said(graph: Graph, kept: Kept, group: set[Var]) -> str:
    dimensions = [d for d in graph.prunable.values() if d.var in group]
    kind = dimensions[0].kind
    planned = [d for d in graph.prunable.values() if d.var in kept and d.kind == kind]
    what = f"its {kind} dimensions" if len(planned) == len(dimensions) else _listed(dimensions)
    word = repr(kind) if len(planned) == len(dimensions) else repr([d.name for d in dimensions])
    return f"without {what} in the plan it holds: exclude={word} keeps the class"


def _listed(dimensions: Sequence[Dimension]) -> str:
    names = ", ".join(f"'{d.name}'" for d in dimensions[:_NAMED])
    return names + (", ..." if len(dimensions) > _NAMED else "")
