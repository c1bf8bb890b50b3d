"""The points that an allocation may be: an option of every choice, with its cost and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.cost_model.parts import CostModel
from ...compiler.ir.terms import Var
from .allocation import Allocation
from .choice import Choice

Options = tuple[int, ...]


class Lattice:
    """The points of the choices (an option of each) with what they cost by a cost model and lose.

    What lies in a dropped branch costs and loses nothing; the branch itself then has its own loss.
    """

    def __init__(self, choices: Sequence[Choice], model: CostModel) -> None:
        self.choices = list(choices)
        self.model = model
        by_branch = {c.branch: i for i, c in enumerate(choices) if c.branch}
        within = {c.branch: c.within for c in choices if c.branch}

        def chain(branch: str) -> tuple[int, ...]:
            return (by_branch[branch], *chain(within[branch])) if branch in by_branch else ()

        self.holders = [chain(c.within) for c in choices]
        owner = {d.var: i for i, c in enumerate(choices) for d in c.dimensions if d.var}
        self._parts = [
            (
                part,
                tuple(sorted({owner[v] for v in part.variables if v in owner})),
                chain(part.branch),
            )
            for part in model.parts
        ]
        self._touching: list[list[int]] = [[] for _ in choices]
        for number, (_, owners, holders) in enumerate(self._parts):
            for member in {*owners, *holders}:
                self._touching[member].append(number)
        self._inside = [
            [j for j, h in enumerate(self.holders) if i in h] for i in range(len(choices))
        ]
        self._known: dict[tuple[int, Options], float] = {}

    @property
    def separable(self) -> bool:
        """Whether no part depends on two choices that do not hold one another."""
        return all(
            len(owners) <= 1 and all(set(holders) <= set(self.holders[o]) for o in owners)
            for _, owners, holders in self._parts
        )

    @property
    def top(self) -> Options:
        """Every width as it is, every branch there."""
        return tuple(len(c.widths) - 1 for c in self.choices)

    @property
    def bottom(self) -> Options:
        """Every width at its floor, every branch dropped."""
        return (0,) * len(self.choices)

    def children(self, choice: int | None) -> list[int]:
        """The choices right inside a branch; of None those inside none."""
        return [i for i, h in enumerate(self.holders) if (h[0] if h else None) == choice]

    def alive(self, choice: int, at: Options) -> bool:
        """Whether all that holds a choice is there."""
        return all(at[h] for h in self.holders[choice])

    def allocation(self, at: Options) -> Allocation:
        """The width of every dimension (its own where it is gone) and the branches dropped."""
        widths: dict[str, int] = {}
        dropped: list[str] = []
        for i, (choice, option) in enumerate(zip(self.choices, at, strict=True)):
            there = self.alive(i, at)
            if choice.branch and there and option == 0:
                dropped.append(choice.branch)
            for d in choice.dimensions:
                widths[d.name] = choice.widths[option] if there else d.size
        return Allocation(widths, tuple(dropped))

    def cost(self, at: Options) -> float:
        """The cost of a point, by the model itself."""
        return self.model.fixed + sum(self._part(n, at) for n in range(len(self._parts)))

    def loss(self, at: Options) -> float:
        """The sum of losses of a point."""
        return sum(self._own_loss(i, at) for i in range(len(at)))

    def costs(self, choice: int, at: Options) -> np.ndarray:
        """The cost of each option of a choice, the others as they are, without what it does not
        change."""
        moved = [(*at[:choice], o, *at[choice + 1 :]) for o in range(self._count(choice))]
        return np.array([sum(self._part(n, m) for n in self._touching[choice]) for m in moved])

    def losses(self, choice: int, at: Options) -> np.ndarray:
        """The loss of each option of a choice, the others as they are, likewise."""
        if not self.alive(choice, at):
            return np.zeros(self._count(choice))
        own = self.choices[choice]
        if not own.branch:
            return own.losses
        there = (*at[:choice], 1, *at[choice + 1 :])
        inside = sum(self._own_loss(i, there) for i in self._inside[choice])
        return np.array([own.losses[0], own.losses[1] + inside])

    def neighbours(self, choice: int) -> set[int]:
        """The choices whose costs or losses a change of this one changes, itself among them."""
        found = {choice, *self.holders[choice], *self._inside[choice]}
        for n in self._touching[choice]:
            _, owners, holders = self._parts[n]
            found.update(owners, holders)
        return found

    def _count(self, choice: int) -> int:
        return len(self.choices[choice].widths)

    def _own_loss(self, choice: int, at: Options) -> float:
        return float(self.choices[choice].losses[at[choice]]) if self.alive(choice, at) else 0.0

    def _part(self, number: int, at: Options) -> float:
        part, owners, holders = self._parts[number]
        if not all(at[h] for h in holders):
            return 0.0
        key = (number, tuple(at[o] for o in owners))
        if key not in self._known:
            sizes: dict[Var, int] = {}
            for owner, option in zip(owners, key[1], strict=True):
                choice = self.choices[owner]
                sizes.update({d.var: choice.widths[option] for d in choice.dimensions if d.var})
            self._known[key] = part.cost(sizes)
        return self._known[key]
