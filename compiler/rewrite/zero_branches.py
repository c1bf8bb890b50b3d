"""Branches that add nothing: known to be zero whatever the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..inference.branches import Branch, find_branches
from ..inference.graph import Graph
from ..ir.drop import Drop
from .known_values import known_values
from .slicing import Kept, zero_tensor


def drop_of(graph: Graph, branch: Branch, constant: Tensor | None = None, axis: int = -1) -> Drop:
    """The removal of a branch of a graph. `constant`: what takes its place, along that axis."""
    result = next(n for n in graph.whole.program.graph.nodes if n.name == branch.result)
    return Drop(
        branch.name,
        branch.source,
        branch.result,
        str(result.target),
        constant,
        axis,
        branch.tensors,
    )


def zero_branches(graph: Graph, planned: Kept) -> list[Drop]:
    """The removal of every branch whose value is zero in the masked model (planned removals count
    as zero), outermost only."""
    branches = [b for b in find_branches(graph) if b.value is not None]
    if not branches:
        return []
    terms = graph.inference.tensors

    def masked(name: str, tensor: Tensor) -> Tensor:
        return zero_tensor(tensor, terms[name], planned)

    known = {n.name: value for n, value in known_values(graph.program, masked).items()}
    found: list[Branch] = []
    for branch in branches:
        value = known.get(str(branch.value))
        if value is not None and bool(value.zero().all()):
            found.append(branch)
    return [drop_of(graph, branch) for branch in outermost(found)]


def outermost(branches: Sequence[Branch]) -> list[Branch]:
    """Without those that others hold: their results are gone with them."""
    inside = {name for b in branches for name in b.nodes}
    return [b for b in branches if b.result not in inside]
