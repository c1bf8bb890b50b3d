"""What the user's class needs of a plan: widths equal or aligned, dimensions left whole."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from ..errors import PlanError
from ..inference.graph import Graph
from ..inference.rule import Inference, bound_arguments, op_name
from ..ir.program import shape_of
from ..ir.terms import Concat, Fixed, Product, Term, Var, known_size, resolve, variables
from .aligned_widths import aligned_widths

_SPLITS = frozenset(
    f"aten::{word}"
    for word in (
        "split split_with_sizes chunk tensor_split hsplit vsplit dsplit "
        "unsafe_split unsafe_chunk unsafe_split_with_sizes"
    ).split()
)
_SLICES = frozenset(("aten::slice", "aten::narrow"))


MODES = ("auto", "always", "never")


def check_mode(keep_class: str) -> None:
    """Raise PlanError for no way to treat the user's class."""
    if keep_class not in MODES:
        raise PlanError(f"keep_class is one of {', '.join(MODES)}, not {keep_class!r}.")


@dataclasses.dataclass(frozen=True)
class Needs:
    """`ties`: names of dimensions of one size that keep equally many entries, disjoint sets.
    `whole`: names of dimensions of which nothing goes. `multiples`: names, and what their widths
    are multiples of."""

    ties: tuple[tuple[str, ...], ...] = ()
    whole: frozenset[str] = frozenset()
    multiples: tuple[tuple[str, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ties or self.whole or self.multiples)

    def joined(self, other: Needs) -> Needs:
        """Both."""
        return (
            self.with_multiples(dict(other.multiples))
            .with_ties(other.ties)
            .with_whole(other.whole)
        )

    def with_multiples(self, more: Mapping[str, int]) -> Needs:
        """Widths of these multiples of that too."""
        found = dict(self.multiples)
        for name, step in more.items():
            found[name] = math.lcm(found.get(name, 1), step)
        return dataclasses.replace(self, multiples=tuple(sorted(found.items()))).with_whole(())

    def multiple(self, name: str) -> int:
        """What the width of a dimension, and of what is tied to it, is a multiple of."""
        known = dict(self.multiples)
        return math.lcm(*(known.get(n, 1) for n in self.tied(name)))

    def with_whole(self, names: Iterable[str]) -> Needs:
        """These left whole too, and whatever is tied to them."""
        whole = self.whole | set(names)
        for group in self.ties:
            if whole.intersection(group):
                whole |= set(group)
        ties = tuple(g for g in self.ties if not whole.intersection(g))
        multiples = tuple((n, step) for n, step in self.multiples if n not in whole)
        return Needs(ties, frozenset(whole), multiples)

    def with_ties(self, groups: Iterable[Iterable[str]]) -> Needs:
        """These tied too; sets that share a dimension become one."""
        joined: list[dict[str, None]] = []
        for group in (*self.ties, *groups):
            found = dict.fromkeys(group)
            for other in [j for j in joined if j.keys() & found.keys()]:
                joined.remove(other)
                found = {**other, **found}
            joined.append(found)
        ties = tuple(tuple(j) for j in joined if len(j) > 1)
        return Needs(ties, self.whole, self.multiples).with_whole(())

    def tied(self, name: str) -> tuple[str, ...]:
        """The set a dimension is tied in; itself where it is in none."""
        return next((g for g in self.ties if name in g), (name,))

    def reaching(self, names: Iterable[str]) -> Needs:
        """For a choice among some dimensions only: what is tied to one outside stays whole."""
        known = set(names)
        return self.with_whole(n for g in self.ties if not known.issuperset(g) for n in g)


def stated_needs(graph: Graph) -> Needs:
    """What the program itself shows: parts of one size that a tensor is split into by one call, or
    sliced into, are written with one number; values generated from a size follow that size; some
    kernels take aligned widths only."""
    names = {d.var: d.name for d in graph.prunable.values() if d.var is not None}
    ties: list[tuple[Var, Var]] = []
    whole: set[Var] = set()
    multiples: dict[str, int] = {}
    for inference in (graph.inference, *(side.inference for side in graph.sides)):
        for parts in _equal_parts(inference):
            for first, second in itertools.pairwise(parts):
                _equate(first, second, ties, whole)
        for terms in inference.generated.values():
            whole.update(v for term in terms for v in variables(term))
        for var, step in aligned_widths(inference):
            if var in names:
                multiples[names[var]] = math.lcm(multiples.get(names[var], 1), step)
    known = [(names[a], names[b]) for a, b in ties if a in names and b in names]
    halves = {v for pair in ties if not (pair[0] in names and pair[1] in names) for v in pair}
    found = Needs().with_multiples(multiples).with_ties(known)
    return found.with_whole(names[v] for v in whole | halves if v in names)


def _equal_parts(inference: Inference) -> Iterator[list[Term]]:
    """Terms of the parts of one size of each split, and of the slices of one value along an axis
    that do not overlap."""
    slices: dict[tuple[Any, int], dict[tuple[int, int], Term]] = defaultdict(dict)
    for node, terms in inference.terms.items():
        name = op_name(node.target) if node.op == "call_function" else ""
        if name in _SPLITS and isinstance(terms, tuple) and terms:
            axis = _changed_axis(node)
            if axis is not None:
                yield from _by_size([part[axis] for part in terms])
        elif name in _SLICES and isinstance(terms, list):
            found = _sliced(node, terms)
            if found is not None:
                axis, start, term = found
                slices[node.args[0], axis][start, known_size(term)] = term
    for found in slices.values():
        places = sorted(found)
        apart = all(a + n <= b for (a, n), (b, _) in itertools.pairwise(places))
        if apart and len(places) > 1:
            yield from _by_size([found[place] for place in places])


def _by_size(parts: Sequence[Term]) -> Iterator[list[Term]]:
    groups: dict[int | None, list[Term]] = defaultdict(list)
    for part in parts:
        groups[part.size].append(part)
    yield from (g for size, g in groups.items() if size and size > 1 and len(g) > 1)


def _changed_axis(node: fx.Node) -> int | None:
    source, parts = node.args[0], node.meta.get("val")
    if not isinstance(source, fx.Node) or not isinstance(parts, (list, tuple)) or not parts:
        return None
    old, new = shape_of(source.meta["val"]), shape_of(parts[0])
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b), None)


def _sliced(node: fx.Node, terms: list[Term]) -> tuple[int, int, Term] | None:
    """(axis, start, term) of a slice in steps of one that takes a part of an axis."""
    given = bound_arguments(node)
    axis, start, source = given.get("dim") or 0, given.get("start") or 0, node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(start, int):
        return None
    if given.get("step") not in (None, 1):
        return None
    old = shape_of(source.meta["val"])
    axis %= len(old)
    before, size = old[axis], terms[axis].size
    if not isinstance(before, int) or size is None or size == before:
        return None
    return axis, start + before if start < 0 else start, terms[axis]


def _equate(a: Term, b: Term, ties: list[tuple[Var, Var]], whole: set[Var]) -> None:
    """The ties by which two terms of one size have one width; what cannot be tied is left whole."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if isinstance(a, Var) and isinstance(b, Var):
        ties.append((a, b))
        return
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Fixed):
            whole.update(variables(other))
            return
    pairs: list[tuple[Term, Term]] = []
    if isinstance(a, Product) and isinstance(b, Product):
        pairs = _aligned(a.factors, b.factors)
    elif isinstance(a, Concat) and isinstance(b, Concat):
        pairs = _aligned(a.parts, b.parts)
    for one, other in pairs:
        _equate(one, other, ties, whole)
    if not pairs and set(variables(a)) != set(variables(b)):
        whole.update((*variables(a), *variables(b)))


def _aligned(left: Sequence[Term], right: Sequence[Term]) -> list[tuple[Term, Term]]:
    sizes = [[resolve(t).size for t in terms] for terms in (left, right)]
    return list(zip(left, right, strict=True)) if sizes[0] == sizes[1] else []
