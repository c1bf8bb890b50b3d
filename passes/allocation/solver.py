"""Allocations within a budget: by the knapsack over losses, or one share for all dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from ...compiler.cost_model.parts import CostModel
from ...compiler.inference.dimensions import Dimension
from ...compiler.ir.terms import Var
from ...compiler.rewrite.selection import kept_count
from .allocation import Allocation
from .choice import Choice, choices, equal_widths, loss_curve
from .coefficients import CoefficientSearch
from .depth import Depth
from .lattice import Lattice, Options
from .search import least_loss

Weigh = Callable[[Sequence[Dimension], Mapping[str, np.ndarray]], Mapping[str, float]]


class Solver:
    """Chooses the widths of some dimensions, each from its `lowest` to its `highest`, for a cost
    model, and which branches of `depth` go.

    `share`: one share for all. Otherwise the knapsack, which also starts from that share; `ties`:
    names of dimensions that get one width; `multiples`: what widths are multiples of, by name;
    `uniform` keeps repeated layers equal (one share does by itself); `snap`: to widths that
    hardware likes; `weigh`: gives each dimension's loss its weight in the sum; `search`: tries
    others, at the first budget that is asked for.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        lowest: Mapping[str, int],
        highest: Mapping[str, int],
        scores: Mapping[str, Tensor],
        errors: Mapping[str, Tensor] | None,
        *,
        round_to: int = 1,
        uniform: bool = False,
        share: bool = False,
        snap: bool = True,
        weigh: Weigh | None = None,
        search: CoefficientSearch | None = None,
        depth: Depth | None = None,
        ties: Sequence[Sequence[str]] = (),
        multiples: Mapping[str, int] | None = None,
    ) -> None:
        self.dimensions = list(dimensions)
        self.multiples = dict(multiples or {})
        self.lowest = {d.name: self._aligned(d, lowest[d.name]) for d in dimensions}
        self.highest = {d.name: self._aligned(d, highest[d.name]) for d in dimensions}
        lowest, highest = dict(self.lowest), dict(self.highest)
        for group in equal_widths(dimensions, ties):
            low = max(lowest[d.name] for d in group)
            high = max(low, min(highest[d.name] for d in group))
            self.lowest.update((d.name, low) for d in group)
            self.highest.update((d.name, high) for d in group)
        self.round_to = round_to
        self.share = share
        self.depth = depth
        self.curves = {
            d.name: loss_curve(d, scores[d.name], (errors or {}).get(d.name)) for d in dimensions
        }
        if weigh is not None and not share:
            for name, weight in weigh(self.dimensions, self.curves).items():
                self.curves[name] = weight * self.curves[name]
        for name in depth.names if depth is not None else ():
            self.curves[name] = np.array([depth.loss(name), 0.0])  # type: ignore[union-attr]
        self.search = search
        self._uniform, self._snap, self._ties = uniform, snap, ties
        self.choices = self._choices(self.curves)

    def smallest(self) -> Allocation:
        """Every dimension at its floor, every branch dropped."""
        names = self.depth.names if self.depth is not None else []
        outermost = self.depth.nesting.outermost(names) if self.depth is not None else []
        return Allocation({d.name: self.lowest[d.name] for d in self.dimensions}, tuple(outermost))

    def within(self, model: CostModel, budget: float) -> Allocation | None:
        """The allocation of least loss whose cost is at most `budget`; None where there is none."""
        start = self._share_within(model, budget)
        if self.share:
            return start
        if self.search is not None:
            search, self.search = self.search, None
            found = search.run(
                list(self.curves), lambda c: self._solve(self._scaled(c), model, budget, start)
            )
            self.curves = self._scaled(found)
            self.choices = self._choices(self.curves)
        return self._solve(self.curves, model, budget, start) or start

    def _solve(
        self,
        curves: Mapping[str, np.ndarray],
        model: CostModel,
        budget: float,
        start: Allocation | None,
    ) -> Allocation | None:
        chosen = self.choices if curves is self.curves else self._choices(curves)
        lattice = Lattice(chosen, model)
        begun = None if start is None else self._nearest(start, chosen)
        found = least_loss(lattice, budget, begun)
        return lattice.allocation(found) if found is not None else None

    def _scaled(self, coefficients: Mapping[str, float]) -> dict[str, np.ndarray]:
        return {name: coefficients[name] * curve for name, curve in self.curves.items()}

    def _choices(self, curves: Mapping[str, np.ndarray]) -> list[Choice]:
        return choices(
            self.dimensions,
            curves,
            self.lowest,
            self.highest,
            self.depth,
            self.round_to,
            self._uniform,
            self._snap,
            self._ties,
            self.multiples,
        )

    def _aligned(self, dimension: Dimension, width: int) -> int:
        """The next of the widths that a dimension may have."""
        step = self.multiples.get(dimension.name, 1)
        return min(math.ceil(width / step) * step, dimension.size)

    def sizes(self, allocation: Allocation) -> dict[Var, int]:
        """The widths by variable."""
        return {d.var: allocation.widths[d.name] for d in self.dimensions if d.var is not None}

    def cost(self, model: CostModel, allocation: Allocation) -> float:
        """What the model says that an allocation costs."""
        nesting = self.depth.nesting if self.depth is not None else None
        gone = nesting.closed(allocation.dropped) if nesting is not None else ()
        return model.total(self.sizes(allocation), gone)

    def loss(self, allocation: Allocation) -> float:
        """The sum of losses of an allocation."""
        gone = set(allocation.dropped)
        widths = sum(float(self.curves[d.name][allocation.widths[d.name]]) for d in self.dimensions)
        return widths + sum(float(self.curves[b][0]) for b in gone if b in self.curves)

    def between(self, narrow: Allocation, wide: Allocation) -> Allocation:
        """Half way from one allocation to a wider one, in each choice's own steps; branches that
        differ are there. A dimension that is not mentioned has its full width."""
        widths: dict[str, int] = {}
        dropped: list[str] = []
        for choice in self.choices:
            if choice.branch:
                gone = choice.branch in narrow.dropped and choice.branch in wide.dropped
                dropped += [choice.branch] if gone else []
                continue
            ends = [
                max(i for i, w in enumerate(choice.widths) if i == 0 or w <= least)
                for least in (
                    min(a.widths.get(d.name, self.highest[d.name]) for d in choice.dimensions)
                    for a in (narrow, wide)
                )
            ]
            width = choice.widths[sum(ends) // 2]
            widths.update((d.name, width) for d in choice.dimensions)
        return Allocation(widths, tuple(dropped))

    def at_share(self, share: float) -> Allocation:
        """This share of every dimension kept, as far as it is left, every branch there."""
        return Allocation(
            {
                d.name: max(
                    self.lowest[d.name],
                    min(
                        self.highest[d.name],
                        self._aligned(d, kept_count(d, 1 - share, self.round_to)),
                    ),
                )
                for d in self.dimensions
            }
        )

    def _share_within(self, model: CostModel, budget: float) -> Allocation | None:
        """Bisection on the share: the cost of a share falls with it, but for rounding."""

        def fits(share: float) -> bool:
            return self.cost(model, self.at_share(share)) <= budget

        if not fits(0.0):
            return None
        if fits(1.0):
            return self.at_share(1.0)
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return self.at_share(low)

    def _nearest(self, start: Allocation, chosen: Sequence[Choice]) -> Options:
        """For every choice the largest option that is no wider than this allocation."""
        found: list[int] = []
        for choice in chosen:
            if choice.branch:
                found.append(int(choice.branch not in start.dropped))
                continue
            wanted = min(start.widths[d.name] for d in choice.dimensions)
            fitting = [i for i, width in enumerate(choice.widths) if width <= wanted]
            found.append(fitting[-1] if fitting else 0)
        return tuple(found)
