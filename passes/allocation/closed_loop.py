"""Meet a target of speed: predict, measure end to end, correct the prediction, solve again."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...compiler.compilation import Compilation
from ...compiler.cost_model.bound import what_bounds
from ...compiler.cost_model.measured import OpTimes
from ...compiler.cost_model.parts import CostModel
from ...compiler.target import Target
from .allocation import Allocation
from .candidate import Candidates
from .reached import Reached
from .solver import Solver

REFINED = 6  # how often a solution's ops are measured and it is solved for again
ROUNDS = 5
CLOSE = 0.02  # a measured speed so near the target ends the loop
STEP, STEPS = 0.03, 10  # how a budget moves on that gives widths already measured
SLACK = 0.03  # a measured speed so much below the target still counts as met
BOUND = 0.5  # of the time staying at the smallest widths is worth a word
OVER = 0.05  # a measured time so much below the target's is more than was asked for: go back
WIDENED = 5  # candidates measured between that one and the next wider, at most
AIM = 0.005  # aimed beyond the target, so that noise does not fall short as often


@dataclasses.dataclass(frozen=True)
class _Point:
    """One measured candidate: ops' time and whole time, as shares of the original's."""

    allocation: Allocation
    ops: float
    time: float


class ClosedLoop:
    """An allocation for a target of speed.

    `ops`, the sum of op times over that of the original's, is what the solver has a budget of. The
    whole time is linear in it between measured candidates; the first of these has every width at
    its floor, which also says whether the target can be reached at all.
    """

    def __init__(
        self, state: Compilation, solver: Solver, target: Target, candidates: Candidates
    ) -> None:
        self.solver, self.target, self.candidates = solver, target, candidates
        self.original_ms = candidates.time(Allocation()).before.median_ms
        if self.wanted >= 1:
            return
        lowest = solver.sizes(solver.smallest())
        self.times = OpTimes(
            state.graph,
            lowest,
            runtime=target.runtime,
            batch=target.batch,
            nesting=solver.depth.nesting if solver.depth is not None else None,
        )
        state.notes += [n for n in self.times.table.notes if n not in state.notes]
        timed = self.times.model().total()
        elements = self.times.elements()
        each = max(0.0, self.original_ms - timed) / elements if elements else 0.0
        self.model: CostModel = self.times.model(each)
        self.full = max(self.model.total(), 1e-9)
        self.points = [_Point(Allocation(), 1.0, 1.0)]
        self.rounds: list[dict[str, Any]] = []

    @property
    def wanted(self) -> float:
        """The time asked for, as a share of the original's."""
        if self.target.kind == "speedup":
            return 1 / self.target.value
        return self.target.value / self.original_ms

    def run(self) -> Reached:
        """At most `ROUNDS` candidates are measured, and `WIDENED` more where those are faster than
        asked; of those fast enough the one nearest to the target."""
        wanted = self.wanted
        if wanted >= 1:
            return Reached(self.solver.at_share(1.0))
        smallest = self._measure(self.solver.smallest())
        if not self._fast_enough(smallest):
            return self._reached(smallest, False, what_bounds(self.times, smallest.time))
        for _ in range(ROUNDS):
            following = self._next(wanted * (1 - AIM))
            if following is None:
                break
            point = self._measure(following)
            if abs(point.time / wanted - 1) <= CLOSE:
                break
        self._widen()
        why = what_bounds(self.times, smallest.time) if smallest.time > BOUND else ""
        return self._reached(self._best(), True, why)

    def _best(self) -> _Point:
        """Of the measured candidates that are fast enough the one nearest to the target."""
        met = [p for p in self.points if self._fast_enough(p)]
        return min(met, key=lambda p: abs(p.time / self.wanted - 1))

    def _widen(self) -> None:
        """Where the best candidate is faster than asked, bisect between it and the least wide one
        that is too slow: what it loses beyond the target is given away."""
        for _ in range(WIDENED):
            best = self._best()
            wider = [p for p in self.points if p.ops > best.ops and not self._fast_enough(p)]
            if best.time > self.wanted * (1 - OVER) or not wider:
                return
            above = min(wider, key=lambda p: p.ops)
            following = self._solve((best.ops + above.ops) / 2 * self.full)
            if any(p.allocation == following for p in self.points):
                following = self.solver.between(best.allocation, above.allocation)
            if any(p.allocation == following for p in self.points):
                return
            self._measure(following)

    def _next(self, wanted: float) -> Allocation | None:
        """What is predicted to take `wanted`, or, where that was measured, the next one on the side
        where the last fell short; None when there is none."""
        times, ops = self._line()
        budget = float(np.interp(wanted, times, ops)) * self.full
        further = 1 - STEP if self.points[-1].time > wanted else 1 + STEP
        for _ in range(STEPS):
            found = self._solve(budget)
            if all(p.allocation != found for p in self.points):
                return found
            budget *= further
        return None

    def _solve(self, budget: float) -> Allocation:
        """The allocation within a budget of ops' time, solved again until all its ops are measured
        as they are."""
        found = self.solver.within(self.model, budget) or self.solver.smallest()
        for _ in range(REFINED):
            if not self.times.refine(self.solver.sizes(found)):
                break
            found = self.solver.within(self.model, budget) or self.solver.smallest()
        return found

    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and ops of the measured candidates, both ascending."""
        ordered = sorted(self.points, key=lambda p: p.time)
        ops = np.maximum.accumulate(np.array([p.ops for p in ordered]))
        return np.array([p.time for p in ordered]), ops

    def _predicted(self, ops: float) -> float:
        times, known = self._line()
        if len(times) == 1:  # nothing measured yet: what is not ops' time stays
            return 1 - min(1.0, self.full / self.original_ms) * (1 - ops)
        return float(np.interp(ops, known, times))

    def _measure(self, allocation: Allocation) -> _Point:
        self.times.refine(self.solver.sizes(allocation))
        ops = self.solver.cost(self.model, allocation) / self.full
        predicted = self._predicted(ops)
        timed = self.candidates.time(allocation)
        point = _Point(allocation, ops, 1 / timed.ratio)
        self.points.append(point)
        self.rounds.append(
            {
                "predicted": self._quantity(predicted),
                "measured": self._quantity(point.time),
                "control": timed.control,
            }
        )
        return point

    def _fast_enough(self, point: _Point) -> bool:
        return point.time <= self.wanted * (1 + SLACK)

    def _quantity(self, time: float) -> float:
        """A share of the original's time as the target counts it."""
        return 1 / time if self.target.kind == "speedup" else time * self.original_ms

    def _reached(self, point: _Point, met: bool, why: str = "") -> Reached:
        row = self.rounds[self.points.index(point) - 1]
        return Reached(point.allocation, met, row["predicted"], row["measured"], self.rounds, why)


def closed_loop(state: Compilation, solver: Solver, target: Target) -> Reached:
    """An allocation for a target of speed, and what it was predicted and measured to give; notes in
    `state` say where the machine was too noisy for its timings to be trusted."""
    with Candidates(state.graph, target, solver.depth) as candidates:
        found = ClosedLoop(state, solver, target, candidates).run()
        if candidates.unsteady:
            worst = max(candidates.unsteady, key=lambda control: abs(control - 1))
            state.notes.append(
                f"{len(candidates.unsteady)} of {len(candidates.known)} candidates were timed on a "
                f"machine that was not steady: the original against itself gave {worst:.2f}, so "
                "the speed in these lines is as uncertain as that"
            )
    return found
