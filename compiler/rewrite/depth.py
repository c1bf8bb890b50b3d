"""A graph without some of its branches: fewer nodes and tensors, its dimensions found anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import PlanError
from ..inference.graph import Graph
from ..ir.drop import Drop, resolved, without
from ..ir.program import Program
from .correspondence import same_dimensions


def without_branches(whole: Graph, drops: Sequence[Drop]) -> Graph:
    """What remains of a captured graph. `whole` is not changed and shares its tensors with it.

    Raises PlanError for drops of another graph.
    """
    if not drops:
        return whole
    program = without(whole.program, drops)
    sides = [side.program for side in whole.sides]
    return Graph(program, whole.outputs, sides, whole=whole, drops=drops)


def stands_for(graph: Graph, dense: Program) -> dict[str, str]:
    """For a value of the dense program that nothing reads but what read the results of dropped
    branches, the last of those: the original's value that it has the part of. By node name."""
    left = {n.name for n in dense.graph.nodes}
    nodes = {n.name: n for n in graph.whole.program.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    gone = {drop.result: drop.source for drop in graph.drops if drop.result not in left}
    found: dict[str, str] = {}
    for drop in sorted(graph.drops, key=lambda d: order[d.result]):
        holder = resolved(drop.source, gone)
        before = nodes[found.get(holder, holder)]
        readers = {user.name for user in before.users} - {drop.result}
        if drop.result in gone and holder in left and not readers & left:
            found[holder] = drop.result
    return found


def carried(kept: Mapping[str, list[int]], before: Graph, after: Graph) -> dict[str, list[int]]:
    """A plan's kept entries in the dimensions of the smaller graph. Raises PlanError where a
    planned dimension has another size there, or may not be pruned."""
    found = same_dimensions(before, after)
    result: dict[str, list[int]] = {}
    for name, entries in kept.items():
        for d in found[name]:
            if d.size != before.dimensions[name].size or d.blocked is not None:
                raise PlanError(
                    f"dimension '{name}' is planned, and is another one without the dropped "
                    "branches; put DropLayers before the passes that prune widths."
                )
            result[d.name] = list(entries)
    return result
