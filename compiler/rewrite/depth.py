"""A graph without some of its branches: fewer nodes and tensors, its dimensions found anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ..errors import PlanError
from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..ir.drop import Drop, resolved, without
from ..ir.program import Program
from ..ir.terms import Concat, Product, Term, Var, children, known_size, resolve

T = TypeVar("T")
Place = tuple[str, int, int, int]  # a tensor, an axis, where a part of it starts, in steps of what


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


def same_dimensions(before: Graph, after: Graph) -> dict[str, list[Dimension]]:
    """For each dimension of the larger graph, those of the smaller one that it has become: none
    where all of it is gone, several where what tied them is gone."""
    owners = dict(_places(before))
    found: dict[str, dict[str, None]] = {name: {} for name in before.dimensions}
    for place, name in _places(after):
        if place in owners:
            found[owners[place]][name] = None
    return {name: [after.dimensions[n] for n in own] for name, own in found.items()}


def _places(graph: Graph) -> Iterator[tuple[Place, str]]:
    """Where in the tensors each dimension occurs, with its name."""
    names = {d.var: name for name, d in graph.dimensions.items() if d.var is not None}
    for tensor, terms in graph.axes.items():
        for axis, term in enumerate(terms):
            for var, start, step in _leaves(term, 0, 1):
                if var in names:
                    yield (tensor, axis, start, step), names[var]


def _leaves(term: Term, start: int, step: int) -> Iterator[tuple[Var, int, int]]:
    """The variables of a term, where each begins along its axis and in which steps it runs."""
    term = resolve(term)
    if isinstance(term, Var):
        yield term, start, step
    elif isinstance(term, Product):
        for factor in reversed(term.factors):
            yield from _leaves(factor, start, step)
            step *= known_size(factor)
    elif isinstance(term, Concat):
        for part in term.parts:
            yield from _leaves(part, start, step)
            start += step * known_size(part)
    else:
        for child in children(term):
            yield from _leaves(child, start, step)


def inherited(before: Graph, after: Graph, values: Mapping[str, T]) -> dict[str, T]:
    """What is known of dimensions of one graph, by name, for those of the other that they have
    become; not where the size is another, or entries may no longer go."""
    if after is before:
        return dict(values)
    return {
        d.name: values[name]
        for name, own in same_dimensions(before, after).items()
        for d in own
        if name in values and d.size == before.dimensions[name].size and d.blocked is None
    }


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
