"""Widths within a budget: by the knapsack over losses, or one share for all dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from ...compiler.cost_model.parts import CostModel
from ...compiler.inference.dimensions import Dimension
from ...compiler.ir.terms import Var
from ...compiler.rewrite.selection import kept_count
from .choice import Choice, choices, loss_curve
from .coefficients import CoefficientSearch
from .lattice import Lattice, Options, least_loss

Widths = dict[str, int]
Weigh = Callable[[Sequence[Dimension], Mapping[str, np.ndarray]], Mapping[str, float]]


class Solver:
    """Chooses the widths of some dimensions, each at least its `lowest`, for a cost model.

    `share`: one share for all. Otherwise the knapsack, which also starts from that share; `uniform`
    keeps repeated layers equal (one share does by itself); `snap`: to widths that hardware likes;
    `weigh`: gives each dimension's loss its weight in the sum; `search`: tries others, at the first
    budget that is asked for.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        lowest: Mapping[str, int],
        scores: Mapping[str, Tensor],
        errors: Mapping[str, Tensor] | None,
        *,
        round_to: int = 1,
        uniform: bool = False,
        share: bool = False,
        snap: bool = True,
        weigh: Weigh | None = None,
        search: CoefficientSearch | None = None,
    ) -> None:
        self.dimensions = list(dimensions)
        self.lowest = dict(lowest)
        self.round_to = round_to
        self.share = share
        self.curves = {
            d.name: loss_curve(d, scores[d.name], (errors or {}).get(d.name)) for d in dimensions
        }
        if weigh is not None and not share:
            for name, weight in weigh(self.dimensions, self.curves).items():
                self.curves[name] = weight * self.curves[name]
        self.search = search
        self._uniform, self._snap = uniform, snap
        self.choices = self._choices(self.curves)

    def smallest(self) -> Widths:
        """Every dimension at its floor."""
        return {d.name: self.lowest[d.name] for d in self.dimensions}

    def within(self, model: CostModel, budget: float) -> Widths | None:
        """The widths of least loss whose cost is at most `budget`; None where there are none."""
        start = self._share_within(model, budget)
        if self.share or start is None:
            return start
        if self.search is not None:
            search, self.search = self.search, None
            names = [d.name for d in self.dimensions]
            found = search.run(names, lambda c: self._solve(self._scaled(c), model, budget, start))
            self.curves = self._scaled(found)
            self.choices = self._choices(self.curves)
        return self._solve(self.curves, model, budget, start) or start

    def _solve(
        self, curves: Mapping[str, np.ndarray], model: CostModel, budget: float, start: Widths
    ) -> Widths | None:
        chosen = self.choices if curves is self.curves else self._choices(curves)
        lattice = Lattice(chosen, model)
        found = least_loss(lattice, budget, self._nearest(start, chosen))
        return lattice.widths(found) if found is not None else None

    def _scaled(self, coefficients: Mapping[str, float]) -> dict[str, np.ndarray]:
        return {name: coefficients[name] * curve for name, curve in self.curves.items()}

    def _choices(self, curves: Mapping[str, np.ndarray]) -> list[Choice]:
        return choices(
            self.dimensions, curves, self.lowest, self.round_to, self._uniform, self._snap
        )

    def loss(self, widths: Widths) -> float:
        """The sum of the losses of widths."""
        return float(sum(self.curves[name][width] for name, width in widths.items()))

    def sizes(self, widths: Widths) -> dict[Var, int]:
        """The same by variable."""
        return {d.var: widths[d.name] for d in self.dimensions if d.var is not None}

    def at_share(self, share: float) -> Widths:
        """The widths when this share of every dimension is kept."""
        return {
            d.name: max(self.lowest[d.name], kept_count(d, 1 - share, self.round_to))
            for d in self.dimensions
        }

    def _share_within(self, model: CostModel, budget: float) -> Widths | None:
        """Bisection on the share: the cost of a share falls with it, but for rounding."""

        def fits(share: float) -> bool:
            return model.total(self.sizes(self.at_share(share))) <= budget

        if model.total(self.sizes(self.smallest())) > budget:
            return None
        if fits(1.0):
            return self.at_share(1.0)
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return self.at_share(low)

    def _nearest(self, widths: Widths, chosen: Sequence[Choice]) -> Options:
        """For every choice the largest option that is no wider than these widths."""
        found: list[int] = []
        for choice in chosen:
            wanted = min(widths[d.name] for d in choice.dimensions)
            fitting = [i for i, width in enumerate(choice.widths) if width <= wanted]
            found.append(fitting[-1] if fitting else 0)
        return tuple(found)
