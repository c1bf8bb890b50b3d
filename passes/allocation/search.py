"""The least loss within a budget: the knapsack, linearised anew where widths share a cost."""

from __future__ import annotations

import dataclasses

import numpy as np

from .knapsack import Item, knapsack
from .lattice import Lattice, Options

ROUNDS = 12
REACH = 0.3  # of a choice's options: how far one re-linearised round may move, at first
COMBINED = 64  # options of a branch with all that is in it, at most

Moves = tuple[tuple[int, int], ...]  # choices, and the option each takes


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """An item of the knapsack, and what each of its options means for the choices."""

    item: Item
    moves: list[Moves]


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
    groups = [_group(lattice, i, at, reach) for i in lattice.children(None)]
    taken = knapsack([g.item for g in groups], budget - lattice.cost(at))
    if taken is None:
        return at
    moved = list(at)
    for group, option in zip(groups, taken, strict=True):
        for choice, to in group.moves[option]:
            moved[choice] = to
    return tuple(moved)


def _group(lattice: Lattice, choice: int, at: Options, reach: float | None) -> _Group:
    """The options of a choice within reach of a point in which it is alive, with what they cost
    more than the point; of a branch also those of all that is in it."""
    now = at[choice]
    costs, losses = lattice.costs(choice, at), lattice.losses(choice, at)
    if not lattice.choices[choice].branch:
        count = len(lattice.choices[choice].widths)
        far = count if reach is None else max(1, round(reach * count))
        options = range(max(0, now - far), min(count, now + far + 1))
        part = slice(options.start, options.stop)
        item = Item(losses[part], (costs - costs[now])[part])
        return _Group(item, [((choice, o),) for o in options])
    there = (*at[:choice], 1, *at[choice + 1 :])
    kept_losses, kept_costs = np.zeros(1), np.array([costs[1] - costs[now]])
    moves: list[Moves] = [((choice, 1),)]
    for child in lattice.children(choice):
        inner = _group(lattice, child, there, reach)
        kept_losses = (kept_losses[:, None] + inner.item.losses[None]).reshape(-1)
        kept_costs = (kept_costs[:, None] + inner.item.costs[None]).reshape(-1)
        moves = [(*a, *b) for a in moves for b in inner.moves]
        best = _worth_keeping(kept_losses, kept_costs)
        kept_losses, kept_costs = kept_losses[best], kept_costs[best]
        moves = [moves[i] for i in best]
    item = Item(np.append(kept_losses, losses[0]), np.append(kept_costs, costs[0] - costs[now]))
    return _Group(item, [*moves, ((choice, 0),)])


def _worth_keeping(losses: np.ndarray, costs: np.ndarray) -> list[int]:
    """The options that none is better than in both, evenly thinned out where there are many."""
    order = np.lexsort((losses, costs))
    best, kept = np.inf, []
    for i in order:
        if losses[i] < best:
            best = losses[i]
            kept.append(int(i))
    if len(kept) > COMBINED:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, COMBINED).round().astype(int)]
    return kept


class _Rows:
    """Costs and losses of every option of every choice at a point that moves."""

    def __init__(self, lattice: Lattice, at: Options) -> None:
        self.lattice, self.at = lattice, at
        self.costs = [lattice.costs(n, at) for n in range(len(at))]
        self.losses = [lattice.losses(n, at) for n in range(len(at))]

    def move(self, choice: int, option: int) -> None:
        self.at = (*self.at[:choice], option, *self.at[choice + 1 :])
        for n in self.lattice.neighbours(choice):
            self.costs[n] = self.lattice.costs(n, self.at)
            self.losses[n] = self.lattice.losses(n, self.at)


def _descend(lattice: Lattice, at: Options, budget: float) -> Options:
    """Step down, each time where the least loss is paid for the cost, until the budget holds."""
    rows = _Rows(lattice, at)
    over = lattice.cost(at) - budget
    while over > 0:
        best: tuple[float, int, int] | None = None
        for number, now in enumerate(rows.at):
            losses = rows.losses[number]
            saved = rows.costs[number][now] - rows.costs[number][:now]
            useful = np.flatnonzero(saved > 0)
            if len(useful):
                paid = (losses[useful] - losses[now]) / np.minimum(saved[useful], over)
                option = int(useful[np.argmin(paid)])
                if best is None or paid.min() < best[0]:
                    best = (float(paid.min()), number, option)
        if best is None:
            return lattice.bottom
        rows.move(best[1], best[2])
        over = lattice.cost(rows.at) - budget
    return rows.at


def _fill(lattice: Lattice, at: Options, budget: float) -> Options:
    """Step up while the budget allows, each time where the most loss is won for the cost."""
    rows = _Rows(lattice, at)
    while True:
        left = budget - lattice.cost(rows.at)
        best: tuple[float, int, int] | None = None
        for number, now in enumerate(rows.at):
            losses = rows.losses[number]
            spent = rows.costs[number] - rows.costs[number][now]
            won = losses[now] - losses
            useful = np.flatnonzero((won > 0) & (spent <= left))
            if len(useful):
                gain = won[useful] / np.maximum(spent[useful], 1e-12)
                if best is None or gain.max() > best[0]:
                    best = (float(gain.max()), number, int(useful[np.argmax(gain)]))
        if best is None:
            return rows.at
        rows.move(best[1], best[2])
