"""The module back end: a plan carried out on a copy of the user's own nn.Module.

The copy holds the dense program's tensors; standard layers' sizes follow from those, and integers
that other modules bake are found by looking. Such a module can run and be wrong, so it is never
trusted: it is returned only if it equals the dense graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from ..inference.graph import Graph
from ..inference.tables import READ
from ..ir.drop import CONSTANT
from ..ir.program import Program, source_line
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept, cut_tensor
from ..verify.backends import exact_outputs, reference_outputs
from ..verify.difference import difference
from .attention_scale import ScaleDecision, apply_scales, scale_decisions
from .attribute_search import MAX_TRIALS, AttributeSearch, Outcome
from .baked_sizes import find_decisions
from .config_sizes import config_decision, count_decision
from .depth import depth_decision, thinnings
from .replay import add_tensor, copy_with
from .resize_modules import Changes, resize_standard
from .thin_modules import Thinning

_INDICES = "prunec_indices_"  # what it selects from generated values


@dataclasses.dataclass(frozen=True)
class ModuleResult:
    """The smaller module, or None and why not. `attributes`: what was set on it besides tensors,
    {module path: {attribute: [old, new]}}, and `scales`: factors by tensor name, both as `replay`
    takes them. `thinning`: the modules that went with dropped branches. `lines`: the user's lines
    that raised while sizes were tried, most often first; `notes`: what a configuration does not
    state."""

    module: nn.Module | None
    attributes: Changes
    reason: str = ""
    scales: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    thinning: Thinning = dataclasses.field(default_factory=Thinning)
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build_module(
    graph: Graph,
    dense: Program,
    kept: Kept,
    compare: Callable[[nn.Module], float],
    tolerance: float,
    trials: int = MAX_TRIALS,
) -> ModuleResult:
    """The user's model with the dense program's tensors in it (the same objects), if that works.

    `kept`: what the dense program was rewritten with. `compare`: the relative error between a
    module and the dense graph, called a bounded number of times; that it raises counts as
    disagreement. The user's model is not changed; tensors that the program does not use are copied.
    Where attention derives its scale from its head width, the dense program's weights and scales
    change with the module's, and its function stays. Members of module lists that dropped branches
    leave empty are taken out, other modules they leave empty become stubs; until then every path
    and name is the original's.
    """
    generated = _unselectable(dense)
    if generated:
        return ModuleResult(None, {}, generated)
    try:
        module = copy_with(graph.source, _by_all_names(graph, dense, kept))
    except Exception as error:  # whatever the user's objects raise when copied
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ModuleResult(None, {}, f"the model cannot be copied: {said}")
    for name, tensor in dense.tensors.items():
        if name not in graph.program.tensors:
            add_tensor(module, name, tensor)
    sides = [rewrite(side, kept, on_use=True) for side in graph.sides]
    attributes = resize_standard(module, dense, *sides)
    sizes = {var: len(entries) for var, entries in kept.items()}
    notes: list[str] = []
    # in a trial of a plan that nobody keeps nothing is asked of the configuration's class
    config = config_decision(graph, sizes, module, notes if trials >= MAX_TRIALS else None)
    scales = scale_decisions(graph, dense, sizes, module)
    baked = [*scales, *find_decisions(graph, dense, sizes, module)]
    places = {place for d in baked for choice in d.choices for place in choice}
    last = [d for d in (count_decision(graph, sizes, module, places), config) if d is not None]
    outcomes: list[Outcome] = []
    for thinning in thinnings(graph):
        depth = depth_decision(module, thinning)
        decisions = [*baked, *([depth] if depth is not None else []), *last]
        search = AttributeSearch(module, decisions, _thin(compare, thinning), tolerance, trials)
        choice = search.run()
        if choice is not None:
            break
        search.set((0,) * len(decisions))
        outcomes += search.outcomes.values()
    else:
        lines = Counter(outcome.line for outcome in outcomes if outcome.line)
        reason = _reason(outcomes[0], dense, {drop.result for drop in graph.drops})
        return ModuleResult(None, {}, reason, lines=tuple(n for n, _ in lines.most_common()))
    for place in range(len(choice) - len(last), len(choice)):  # what nothing may read
        stated = (*choice[:place], 1, *choice[place + 1 :])
        if choice[place] == 0 and search.agrees(stated):
            choice = stated
    search.set(choice)
    for path, changes in search.changes(choice).items():
        attributes.setdefault(path, {}).update(changes)
    taken = [d for d, chosen in zip(scales, choice, strict=False) if chosen]
    if taken and not _kept_function(dense, taken, tolerance):
        return ModuleResult(None, {}, "a scale that was moved into weights changes the graph")
    factors = {name: factor for d in taken for name, factor in d.factors.items()}
    thinning.apply(module)
    return ModuleResult(module, attributes, scales=factors, thinning=thinning, notes=tuple(notes))


def _thin(
    compare: Callable[[nn.Module], float], thinning: Thinning
) -> Callable[[nn.Module], float]:
    """The comparison of a module without what leaves it."""

    def compared(module: nn.Module) -> float:
        with thinning.applied(module):
            return compare(module)

    return compared


def _by_all_names(graph: Graph, dense: Program, kept: Kept) -> dict[str, Tensor]:
    """The dense program's tensors, and those of side branches cut to the widths they read."""
    tensors = {n: dense.tensors[n] for n in graph.program.tensors if n in dense.tensors}
    for name, tensor in graph.beside.items():
        tensors[name] = cut_tensor(tensor, graph.inference.beside[name], kept)
    return {
        known: tensor
        for name, tensor in tensors.items()
        for known in (name, *graph.aliases.get(name, ()))
    }


def _kept_function(dense: Program, taken: list[ScaleDecision], tolerance: float) -> bool:
    """Apply the scales to the dense program; undo them where it is not the same function."""
    call = dense.args, dense.kwargs
    before, exact = reference_outputs(dense, [call])[0], exact_outputs(dense, call)
    undo = [apply_scales(dense, decision) for decision in taken]
    after = reference_outputs(dense, [call])[0]
    if difference(after, before, exact).error <= tolerance:
        return True
    for step in undo:
        step()
    return False


def _unselectable(dense: Program) -> str:
    """Why a module that makes values from sizes cannot keep some of them; '' where it need not."""
    for node in dense.graph.nodes:
        kept = dense.tensors.get(str(node.target)) if node.op == "get_attr" else None
        if kept is None or not str(node.target).startswith(_INDICES):
            continue
        if not torch.equal(kept.cpu(), torch.arange(len(kept))):
            made = next(iter(node.users)).all_input_nodes[0]
            if READ in made.meta:
                return (
                    f"{made.name} ({source_line(made)}) reads a table of which each module keeps "
                    "its own entries: the modules would share them"
                )
            return (
                f"{made.name} ({source_line(made)}) makes values from a size, and those kept are "
                "not the first ones: the module would make others"
            )
    return ""


def _reason(outcome: Outcome, dense: Program, dropped: Collection[str]) -> str:
    reason = outcome.text
    if not math.isinf(outcome.error):
        reason = f"the module runs but differs from the graph by {outcome.error:.2g}"
    unplaced = [n.removeprefix(CONSTANT) for n in dense.tensors if n.startswith(CONSTANT)]
    means = [name for name in unplaced if name in dropped]
    if means:
        reason += f" (no bias can take the mean of what was dropped at {', '.join(means[:3])})"
    elif unplaced:
        where = ", ".join(unplaced[:3])
        reason += f" (constants were folded after {where}, which have no bias to take them)"
    return reason
