"""Which dimensions of a smaller graph those of a larger one have become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..ir.terms import Concat, Product, Term, Var, children, resolve
from .slicing import Kept, kept_size

T = TypeVar("T")
Place = tuple[str, int, int, int]  # a tensor, an axis, where a part of it starts, in steps of what
Rename = Callable[[str], str]


def same_dimensions(
    before: Graph, after: Graph, kept: Kept | None = None, original: Rename = str
) -> dict[str, list[Dimension]]:
    """For each dimension of the larger graph, those of the smaller one that it has become: none
    where all of it is gone, several where what tied them is gone.

    `kept`: the entries that stayed, where the smaller graph is of a model that was cut; `original`:
    the larger graph's name of a tensor of the smaller one.
    """
    owners = dict(_places(before, kept or {}, str))
    found: dict[str, dict[str, None]] = {name: {} for name in before.dimensions}
    for place, name in _places(after, {}, original):
        if place in owners:
            found[owners[place]][name] = None
    return {name: [after.dimensions[n] for n in own] for name, own in found.items()}


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


def _places(graph: Graph, kept: Kept, original: Rename) -> Iterator[tuple[Place, str]]:
    """Where in the tensors each dimension occurs once they are cut, with its name."""
    names = {d.var: name for name, d in graph.dimensions.items() if d.var is not None}
    for tensor, terms in graph.axes.items():
        for axis, term in enumerate(terms):
            for var, start, step in _leaves(term, kept, 0, 1):
                if var in names:
                    yield (original(tensor), axis, start, step), names[var]


def _leaves(term: Term, kept: Kept, start: int, step: int) -> Iterator[tuple[Var, int, int]]:
    """The variables of a term, where each begins along its axis and in which steps it runs."""
    term = resolve(term)
    if isinstance(term, Var):
        yield term, start, step
    elif isinstance(term, Product):
        for factor in reversed(term.factors):
            yield from _leaves(factor, kept, start, step)
            step *= kept_size(factor, kept)
    elif isinstance(term, Concat):
        for part in term.parts:
            yield from _leaves(part, kept, start, step)
            start += step * kept_size(part, kept)
    else:
        for child in children(term):
            yield from _leaves(child, kept, start, step)
