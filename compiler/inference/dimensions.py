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
    children,
    leaves,
    resolve,
    variables,
)
from .exactness import inexact
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
    kinds = _kinds(inference, members)
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


def _kinds(inference: Inference, members: Iterable[Var]) -> dict[Var, str]:
    roles: dict[Var, set[str]] = defaultdict(set)
    for term, role in inference.roles:
        if role in ("head", "repeat", "group", "expert"):
            for var in variables(term):
                roles[var].add(role)
        else:
            for var in _innermost(term) if role == "head-dim" else variables(term):
                roles[var].add(role)
    grouped = {v for v, r in roles.items() if {"head", "repeat"} <= r}
    shared = _sharing_product(inference, grouped)
    weighed = {v for sink in inference.sinks if sink.weight for v in variables(sink.term)}
    kinds: dict[Var, str] = {}
    for var in members:
        own = roles[var]
        if var not in weighed:  # a stream is read by weights; sums have token axes too
            own.discard("residual")
        if "expert" in own:
            kind = "expert"
        elif var in grouped:
            kind = "query-group"
        elif "head" in own:
            kind = "kv-head" if var in shared else "head"
        else:
            order = ("head-dim", "group", "residual", "channel", "hidden")
            kind = next((k for k in order if k in own), "other")
        kinds[var] = kind
    return kinds


def _innermost(term: Term) -> list[Var]:
    """The variables of a head width; for a product (heads x width, pairs x 2) those of its last
    factor that has any."""
    term = resolve(term)
    factors = term.factors if isinstance(term, Product) else (term,)
    return next((found for f in reversed(factors) if (found := variables(f))), [])


def _products(inference: Inference) -> Iterable[Product]:
    def walk(term: Term) -> Iterable[Product]:
        term = resolve(term)
        if isinstance(term, Product):
            yield term
        for child in children(term):
            yield from walk(child)

    for terms in inference.tensors.values():
        for term in terms:
            yield from walk(term)


def _sharing_product(inference: Inference, chosen: set[Var]) -> set[Var]:
    """Variables that stand just outside one of the chosen ones in a product (kv heads)."""
    found: set[Var] = set()
    for p in _products(inference):
        for outer, inner in zip(p.factors, p.factors[1:], strict=False):
            if set(variables(inner)) & chosen:
                found.update(set(variables(outer)) - chosen)
    return found


def _partners(inference: Inference, members: Iterable[Var]) -> dict[Var, list[Var]]:
    partners: dict[Var, list[Var]] = {var: [] for var in members}
    for p in _products(inference):
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
