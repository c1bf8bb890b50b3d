"""A cost as a sum of parts, each of which depends on the widths of a few dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ..ir.terms import Var

Price = Callable[[Mapping[Var, int]], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What some tensors or ops cost together, given the sizes of the `variables` they depend on."""

    variables: tuple[Var, ...]
    prices: tuple[Price, ...]

    def cost(self, sizes: Mapping[Var, int]) -> float:
        """The cost at these sizes; variables that `sizes` lacks have their own."""
        return sum(price(sizes) for price in self.prices)


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel:
    """The sum of `fixed`, which no width changes, and of `parts`. `unit` names what is counted."""

    parts: tuple[Part, ...]
    fixed: float
    unit: str

    def total(self, sizes: Mapping[Var, int] | None = None) -> float:
        """The cost of the whole model at these sizes (None: as captured)."""
        return self.fixed + sum(part.cost(sizes or {}) for part in self.parts)


def gather(prices: Sequence[tuple[frozenset[Var], Price]]) -> tuple[Part, ...]:
    """One part for each set of variables that occurs, in the order in which they do."""
    found: dict[frozenset[Var], list[Price]] = {}
    for variables, price in prices:
        found.setdefault(variables, []).append(price)
    return tuple(
        Part(tuple(sorted(variables, key=lambda v: v.serial)), tuple(own))
        for variables, own in found.items()
    )
