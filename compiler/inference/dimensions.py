"""Dimensions: the variables that inference left free, with kind, members and what couples them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from ..ir.program import Program
from ..ir.terms import (
    Fixed,
    Indexed,
    Product,
    Reason,
    Term,
    Var,
    leaves,
    resolve,
    variables,
)
from .exactness import inexact
from .kinds import find_kinds, products
from .rule import SELECTION, Inference

STRUCTURAL = "spatial axis or kernel"  # convolution kernels: blocked by nature, listed in one line


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One set of coupled channels, wherever it occurs: the unit of pruning decisions.

    `members` are (tensor name, axis) pairs that carry it. `statistics`: why it is norm-coupled
    (empty: exact). `blocked`: why nothing may be removed. `partners`: dimensions it shares a
    product with (heads x head-dim): prune one of them at a time. `minimum`: entries always kept.
    """

    name: str
    kind: str
    size: int
    members: tuple[tuple[str, int], ...]
    statistics: tuple[Reason, ...] = ()
    blocked: Reason | None = None
    partners: tuple[str, ...] = ()
    minimum: int = 1
    var: Var | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def exact(self) -> bool:
        """Whether the dense model must equal the masked one."""
        return not self.statistics and self.blocked is None


def find_dimensions(program: Program, inference: Inference) -> dict[str, Dimension]:
    """All dimensions by name, in the order of the graph's tensors; blocked ones come last."""
    _block_uncontracted(inference)
    members = _members(inference)
    statistics: dict[Var, list[Reason]] = defaultdict(list)
    for statistic in inference.statistics:
        for var in variables(statistic.term):
            statistics[var].append(statistic.reason)
    for var, reason in inexact(program, inference):
        statistics[var].append(reason)
    minimums: dict[Var, int] = defaultdict(lambda: 1)
    for term, size in inference.minimums:
        for var in variables(term):
            minimums[var] = max(minimums[var], size)
    kinds = find_kinds(inference, members)
    names = _names(inference, members, kinds)
    partners = _partners(inference, members)
    found = {
        names[var]: Dimension(
            name=names[var],
            kind=kinds[var],
            size=var.size,
            members=tuple(places),
            statistics=tuple(dict.fromkeys(statistics[var])),
            partners=tuple(names[p] for p in partners[var]),
            minimum=minimums[var],
            var=var,
        )
        for var, places in members.items()
    }
    found.update(_blocked(inference))
    return found


def _block_uncontracted(inference: Inference) -> None:
    """What is never summed over is not a channel (positions, unused table rows): block it."""
    reached: set[Var] = set()
    for fact in (*inference.sinks, *inference.statistics):
        reached.update(variables(fact.term))
    for name, terms in inference.tensors.items():
        for term in terms:
            for var in variables(term):
                if var not in reached:
                    var.binding = Fixed(var.size, Reason(f"never summed over (in {name})"))


def _members(inference: Inference) -> dict[Var, list[tuple[str, int]]]:
    members: dict[Var, list[tuple[str, int]]] = {}
    for name, terms in inference.tensors.items():
        for axis, term in enumerate(terms):
            for var in variables(term):
                members.setdefault(var, []).append((name, axis))
    return members


def _partners(inference: Inference, members: Iterable[Var]) -> dict[Var, list[Var]]:
    partners: dict[Var, list[Var]] = {var: [] for var in members}
    for p in products(inference):
        groups = [variables(f) for f in p.factors]
        for i, group in enumerate(groups):
            for other in (v for k, g in enumerate(groups) if k != i for v in g):
                for var in group:
                    if other is not var and other not in partners[var]:
                        partners[var].append(other)
    return partners


def _names(
    inference: Inference, members: dict[Var, list[tuple[str, int]]], kinds: dict[Var, str]
) -> dict[Var, str]:
    """`module.path:kind`, after the first module that produces the dimension."""
    consumed = {
        (str(node.target), axis)
        for sink in inference.sinks
        for node, axis in sink.operands
        if node.op == "get_attr"
    }
    names: dict[Var, str] = {}
    taken: dict[str, int] = {}
    for var, places in members.items():
        produced = [place for place in places if place not in consumed] or places
        matrices = [p for p in produced if len(inference.tensors[p[0]]) > 1] or produced
        tensor = matrices[0][0]
        path = tensor.rpartition(".")[0] or tensor
        name = f"{path}:{kinds[var]}"
        taken[name] = taken.get(name, 0) + 1
        names[var] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    return names


def _blocked(inference: Inference) -> dict[str, Dimension]:
    groups: dict[tuple[Reason, int], list[tuple[str, int]]] = {}
    for name, terms in inference.tensors.items():
        for axis, term in enumerate(terms if not name.startswith(SELECTION) else ()):
            for leaf in leaves(term):
                if isinstance(leaf, Fixed) and leaf.size not in (0, 1, None):
                    assert leaf.size is not None
                    groups.setdefault((leaf.reason, leaf.size), []).append((name, axis))
    found: dict[str, Dimension] = {}
    taken: dict[str, int] = {}
    for (reason, size), places in groups.items():
        name = f"{places[0][0]}[{places[0][1]}]"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        found[name] = Dimension(
            name=name,
            kind="blocked",
            size=size,
            members=tuple(dict.fromkeys(places)),
            blocked=reason,
        )
    return found


def width_of(term: Term, kept: dict[Var, int]) -> int:
    """The size of a term when `kept` variables have the given sizes and the others their own; of a
    selection the share that its base keeps, since which of its entries stay is not known."""
    term = resolve(term)
    if isinstance(term, Var):
        return kept.get(term, term.size)
    if isinstance(term, Fixed):
        return term.size or 0
    if isinstance(term, Product):
        size = 1
        for factor in term.factors:
            size *= width_of(factor, kept)
        return size
    if isinstance(term, Indexed):
        share = width_of(term.base, kept) / max(term.base.size or 1, 1)
        return max(round(len(term.index) * share), 1)
    return sum(width_of(part, kept) for part in term.parts)
