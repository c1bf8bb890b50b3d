"""The multiple-choice knapsack: one option of every item, least loss within a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

BUCKETS = 4000


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """Options of which exactly one is taken: a dimension's widths, or a branch that stays or goes.

    `losses`, `costs`: one value for each option; costs may have any sign.
    """

    losses: np.ndarray
    costs: np.ndarray


def knapsack(items: Sequence[Item], budget: float, buckets: int = BUCKETS) -> list[int] | None:
    """The option of each item with the least sum of losses whose sum of costs is at most `budget`;
    None when even the cheapest options cost more.

    Dynamic programming over `buckets` equal parts of what the budget leaves above the cheapest
    options (Kellerer et al., Knapsack Problems, 11.5). Costs are rounded up to whole parts, so the
    budget holds; what is lost by rounding is at most one part an item.
    """
    floors = [float(item.costs.min()) for item in items]
    slack = budget - sum(floors)
    if slack < 0:
        return None
    buckets = buckets if slack > 0 else 0
    part = slack / buckets if slack > 0 else 1.0
    best = np.zeros(buckets + 1)  # least loss so far with at most so many parts spent
    taken: list[np.ndarray] = []
    for item, floor in zip(items, floors, strict=True):
        spent = np.ceil((item.costs - floor) / part - 1e-9)
        following = np.full(buckets + 1, np.inf)
        choice = np.zeros(buckets + 1, dtype=np.int32)
        for option in np.argsort(item.losses, kind="stable"):
            if spent[option] > buckets:
                continue
            shift = int(spent[option])
            total = best[: buckets + 1 - shift] + item.losses[option]
            better = total < following[shift:]
            following[shift:][better] = total[better]
            choice[shift:][better] = option
        best = following
        taken.append(choice)
    chosen: list[int] = []
    left = buckets
    for item, floor, choice in zip(reversed(items), reversed(floors), reversed(taken), strict=True):
        option = int(choice[left])
        chosen.append(option)
        left -= int(np.ceil((item.costs[option] - floor) / part - 1e-9))
    return chosen[::-1]
