"""A cost as a sum of parts, each of which depends on the widths of a few dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from ..ir.terms import Var

Price = Callable[[Mapping[Var, int]], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What some tensors or ops cost together, given the sizes of the `variables` they depend on.
    `branch`: the innermost one that takes them along when it is dropped; '' for none."""

    variables: tuple[Var, ...]
    prices: tuple[Price, ...]
    branch: str = ""

    def cost(self, sizes: Mapping[Var, int]) -> float:
        """The cost at these sizes; variables that `sizes` lacks have their own."""
        return sum(price(sizes) for price in self.prices)


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel:
    """The sum of `fixed`, which no width changes, and of `parts`. `unit` names what is counted."""

    parts: tuple[Part, ...]
    fixed: float
    unit: str

    def total(self, sizes: Mapping[Var, int] | None = None, dropped: Collection[str] = ()) -> float:
        """The cost of the whole model at these sizes (None: as captured) without the branches that
        are `dropped`, those inside others among them."""
        left = (part for part in self.parts if part.branch not in dropped)
        return self.fixed + sum(part.cost(sizes or {}) for part in left)


def gather(prices: Sequence[tuple[frozenset[Var], str, Price]]) -> tuple[Part, ...]:
    """One part for each set of variables and branch that occurs, in the order in which they do."""
    found: dict[tuple[frozenset[Var], str], list[Price]] = {}
    for variables, branch, price in prices:
        found.setdefault((variables, branch), []).append(price)
    return tuple(
        Part(tuple(sorted(variables, key=lambda v: v.serial)), tuple(own), branch)
        for (variables, branch), own in found.items()
    )
