"""The cost of choices by the options taken, and the least loss within a budget of that cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.cost_model.parts import CostModel
from ...compiler.ir.terms import Var
from .choice import Choice
from .knapsack import Item, knapsack

ROUNDS = 12
REACH = 0.3  # of a choice's options: how far one re-linearised round may move, at first

Options = tuple[int, ...]


class Lattice:
    """The points of the choices (an option of each) with what they cost by a cost model."""

    def __init__(self, choices: Sequence[Choice], model: CostModel) -> None:
        self.choices = list(choices)
        self.model = model
        self._owner = {d.var: i for i, c in enumerate(choices) for d in c.dimensions if d.var}
        self._parts = [
            (part, tuple(sorted({self._owner[v] for v in part.variables if v in self._owner})))
            for part in model.parts
        ]
        self._touching: list[list[int]] = [[] for _ in choices]
        for number, (_, owners) in enumerate(self._parts):
            for owner in owners:
                self._touching[owner].append(number)
        self._known: dict[tuple[int, Options], float] = {}

    @property
    def separable(self) -> bool:
        """Whether no part depends on two choices, so that costs add up."""
        return all(len(owners) <= 1 for _, owners in self._parts)

    @property
    def top(self) -> Options:
        """Every width as it is."""
        return tuple(len(c.widths) - 1 for c in self.choices)

    @property
    def bottom(self) -> Options:
        """Every width at its floor."""
        return (0,) * len(self.choices)

    def widths(self, at: Options) -> dict[str, int]:
        """The width of every dimension by name."""
        return {
            d.name: c.widths[i] for c, i in zip(self.choices, at, strict=True) for d in c.dimensions
        }

    def cost(self, at: Options) -> float:
        """The cost of a point, by the model itself."""
        return self.model.fixed + sum(self._part(n, at) for n in range(len(self._parts)))

    def loss(self, at: Options) -> float:
        """The sum of losses of a point."""
        return float(sum(c.losses[i] for c, i in zip(self.choices, at, strict=True)))

    def row(self, choice: int, at: Options) -> np.ndarray:
        """The cost of each option of a choice, the others as they are, without what it does not
        change."""
        found = np.zeros(len(self.choices[choice].widths))
        for option in range(len(found)):
            moved = (*at[:choice], option, *at[choice + 1 :])
            found[option] = sum(self._part(n, moved) for n in self._touching[choice])
        return found

    def neighbours(self, choice: int) -> set[int]:
        """The choices whose rows a change of this one changes, itself among them."""
        return {o for n in self._touching[choice] for o in self._parts[n][1]} | {choice}

    def _part(self, number: int, at: Options) -> float:
        part, owners = self._parts[number]
        key = (number, tuple(at[o] for o in owners))
        if key not in self._known:
            sizes: dict[Var, int] = {}
            for owner, option in zip(owners, key[1], strict=True):
                choice = self.choices[owner]
                sizes.update({d.var: choice.widths[option] for d in choice.dimensions if d.var})
            self._known[key] = part.cost(sizes)
        return self._known[key]


def least_loss(lattice: Lattice, budget: float, start: Options | None = None) -> Options | None:
    """A point of least loss whose cost is at most `budget`; None when the floor itself costs more.

    Where costs add up this is the knapsack's optimum. Where two widths share a cost (a convolution
    depends on both of its sides), costs are linearised about a point, solved within reach of it,
    mended to the exact cost, and linearised again (HALP, Shen et al. 2022), from a greedy descent
    and from `start`; the better end counts.
    """
    if lattice.cost(lattice.bottom) > budget:
        return None
    if lattice.separable:
        return _fill(lattice, _round(lattice, lattice.bottom, budget, None), budget)
    starts = [_descend(lattice, lattice.top, budget)]
    if start is not None:
        starts.append(_descend(lattice, start, budget))
    return min((_relinearised(lattice, at, budget) for at in starts), key=lattice.loss)


def _relinearised(lattice: Lattice, at: Options, budget: float) -> Options:
    at, reach = _fill(lattice, at, budget), REACH
    for _ in range(ROUNDS):
        moved = _descend(lattice, _round(lattice, at, budget, reach), budget)
        moved = _fill(lattice, moved, budget)
        if lattice.loss(moved) < lattice.loss(at) * (1 - 1e-6):
            at = moved
        else:
            reach /= 2
    return at


def _round(lattice: Lattice, at: Options, budget: float, reach: float | None) -> Options:
    """The knapsack with costs linear about a point, which stays possible itself."""
    items: list[Item] = []
    starts: list[int] = []
    for number, (choice, now) in enumerate(zip(lattice.choices, at, strict=True)):
        count = len(choice.widths)
        far = count if reach is None else max(1, round(reach * count))
        low, high = max(0, now - far), min(count, now + far + 1)
        row = lattice.row(number, at)
        items.append(Item(choice.losses[low:high], (row - row[now])[low:high]))
        starts.append(low)
    taken = knapsack(items, budget - lattice.cost(at))
    return at if taken is None else tuple(s + t for s, t in zip(starts, taken, strict=True))


def _descend(lattice: Lattice, at: Options, budget: float) -> Options:
    """Step down, each time where the least loss is paid for the cost, until the budget holds."""
    rows = [lattice.row(n, at) for n in range(len(at))]
    over = lattice.cost(at) - budget
    while over > 0:
        best: tuple[float, int, int] | None = None
        for number, now in enumerate(at):
            losses = lattice.choices[number].losses
            saved = rows[number][now] - rows[number][:now]
            useful = np.flatnonzero(saved > 0)
            if len(useful):
                paid = (losses[useful] - losses[now]) / np.minimum(saved[useful], over)
                option = int(useful[np.argmin(paid)])
                if best is None or paid.min() < best[0]:
                    best = (float(paid.min()), number, option)
        if best is None:
            return lattice.bottom
        at = _moved(lattice, rows, at, best[1], best[2])
        over = lattice.cost(at) - budget
    return at


def _fill(lattice: Lattice, at: Options, budget: float) -> Options:
    """Step up while the budget allows, each time where the most loss is won for the cost."""
    rows = [lattice.row(n, at) for n in range(len(at))]
    while True:
        left = budget - lattice.cost(at)
        best: tuple[float, int, int] | None = None
        for number, now in enumerate(at):
            losses = lattice.choices[number].losses
            spent = rows[number] - rows[number][now]
            won = losses[now] - losses
            useful = np.flatnonzero((won > 0) & (spent <= left))
            if len(useful):
                gain = won[useful] / np.maximum(spent[useful], 1e-12)
                if best is None or gain.max() > best[0]:
                    best = (float(gain.max()), number, int(useful[np.argmax(gain)]))
        if best is None:
            return at
        at = _moved(lattice, rows, at, best[1], best[2])


def _moved(
    lattice: Lattice, rows: list[np.ndarray], at: Options, choice: int, option: int
) -> Options:
    at = (*at[:choice], option, *at[choice + 1 :])
    for number in lattice.neighbours(choice):
        rows[number] = lattice.row(number, at)
    return at
