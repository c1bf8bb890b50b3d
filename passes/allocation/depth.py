"""The branches that an allocation may drop, what the outputs lose without each, and dropping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from ...compiler.capture.examples import fresh_inputs
from ...compiler.compilation import Compilation
from ...compiler.errors import PlanError
from ...compiler.inference.branches import find_branches, fits
from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ...compiler.inference.nesting import Nesting
from ...compiler.report import BranchReport
from ...compiler.rewrite.depth import without_branches
from ...compiler.rewrite.zero_branches import drop_of
from ..calibration.effects import Effect, branch_effects, droppable
from .choice import loss_of

BATCHES = 2  # of calibration data; each branch runs about half of the graph on each once more
RANDOM_DRAWS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Depth:
    """Branches of a graph that may go, with the effect of each alone (see `branch_effects`)."""

    nesting: Nesting
    effects: Mapping[str, Effect]

    @property
    def names(self) -> list[str]:
        """In the order of the graph."""
        return list(self.nesting.branches)

    def loss(self, name: str) -> float:
        """What a branch costs when it goes, as the losses of widths are counted."""
        return loss_of(self.effects[name].error)

    def holder(self, dimension: Dimension) -> str:
        """The innermost branch that takes all of a dimension along; '' where none does."""
        return self.nesting.of_tensors([name for name, _ in dimension.members])

    def without(self, graph: Graph, dropped: Sequence[str]) -> Graph:
        """The graph without these branches."""
        drops = [
            drop_of(graph, self.nesting.branches[b], self.effects[b].constant, self.effects[b].axis)
            for b in self.nesting.outermost(dropped)
        ]
        return without_branches(graph.whole, [*graph.drops, *drops]) if drops else graph

    def drop(self, state: Compilation, dropped: Sequence[str]) -> None:
        """Drop them from what is compiled, and say what became of each."""
        tensors = state.graph.whole.program.tensors
        outermost = self.nesting.outermost(dropped)
        gone = self.nesting.closed(outermost)
        state.drop(self.without(state.graph, dropped).drops[len(state.graph.drops) :])
        for name, branch in self.nesting.branches.items():
            held = (tensors[n] for n in branch.tensors if n in tensors)
            count = sum(t.numel() for t in held if isinstance(t, nn.Parameter))
            if name in outermost:
                mean = self.effects[name].constant is not None
                reason = "its mean" if mean else "nothing"
            else:
                reason = "gone with another" if name in gone else "the target is met with it"
            what = "dropped" if name in gone else "kept"
            state.branches[name] = BranchReport(
                name, branch.unit, what, reason, self.effects[name].error, count
            )


def find_depth(
    state: Compilation, share: float, exclude: Collection[str] = (), blocks: bool = False
) -> Depth:
    """The branches of least effect, at most this share of them (those dropped before counted), and
    the blocks that hold no others; those that patterns of `exclude` fit stay. `blocks`: whole
    blocks only.

    Measured on the first calibration batches, on random inputs where there are none. Raises
    PlanError for weights on the meta device.
    """
    graph = state.graph
    if graph.program.is_meta:
        raise PlanError("depth is measured, and weights on the meta device have no values.")
    found = droppable(graph, find_branches(graph))
    program = graph.program
    batches = [list(flat) for flat in state.calibration[:BATCHES]]
    if not batches:
        draws = (fresh_inputs(program.args, program.kwargs, seed=i) for i in range(RANDOM_DRAWS))
        batches = [program.flat_inputs(*draw) for draw in draws]
    effects = branch_effects(graph, found, batches, "auto" if state.calibration else "nothing")
    able = [b for b in found if math.isfinite(effects[b.name].error) and not fits(b, exclude)]
    unit = "block" if blocks else "branch"
    own = sorted((b for b in able if unit in b.units), key=lambda b: effects[b.name].error)
    every = sum(unit in b.units for b in find_branches(graph.whole))
    gone = every - sum(unit in b.units for b in found)
    offered = own[: max(0, math.floor(share * every + 1e-9) - gone)]
    if not blocks:
        inside = {b.result for b in found if "branch" in b.units} - {b.result for b in offered}
        offered += [
            b
            for b in able
            if b not in offered and "branch" not in b.units and not inside & {*b.nodes, b.result}
        ]
    names = {b.name for b in offered}
    return Depth(
        Nesting([b for b in found if b.name in names]), {name: effects[name] for name in names}
    )
