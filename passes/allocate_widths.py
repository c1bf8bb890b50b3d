"""Choose how many entries every dimension keeps, to meet a target."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..compiler.compilation import Compilation
from ..compiler.cost_model.counted import counted
from ..compiler.emit.class_needs import Needs, check_mode
from ..compiler.errors import PlanError, TargetError
from ..compiler.inference.branches import find_branches
from ..compiler.inference.dimensions import Dimension
from ..compiler.measure.cost import cost
from ..compiler.pass_class import Pass, PassResult
from ..compiler.processes import on_first
from ..compiler.report import Aim
from ..compiler.rewrite.correspondence import inherited
from ..compiler.rewrite.selection import (
    as_patterns,
    matches,
    one_factor_each,
    require_known,
    require_matches,
)
from ..compiler.rounds import sizes_left
from ..compiler.target import Target
from .allocation.allocation import Allocation
from .allocation.choice import lowest_width
from .allocation.closed_loop import closed_loop
from .allocation.coefficients import CoefficientSearch
from .allocation.depth import Depth, find_depth
from .allocation.kept_class import KeptClass
from .allocation.reached import Reached
from .allocation.sensitivity import allocation_error, sensitivities
from .allocation.solver import Solver
from .allocation.within_error import widths_within

FLOOR = 0.05  # the smallest share a target may leave of a dimension
METHODS = ("auto", "knapsack", "share")


@dataclasses.dataclass
class AllocateWidths(Pass):
    """Choose the width of every dimension (one factor per product) so that the target is met.

    `params`, `macs` and `bytes` are counted; `speedup` and `latency_ms` are predicted from measured
    ops, and the rewritten candidate is measured beside the original until the two agree. `width`
    keeps that share of everything. `error` takes of every exact dimension the fewest entries whose
    predicted error stays within it, by the error curves of a score before it.

    `method`: "knapsack" gives each dimension its own width, the least loss within the budget;
    "share" one share to all; "auto" the knapsack where a score measured error curves, one share
    otherwise: by magnitudes alone the knapsack did no better. Neither wins everywhere, so harsh
    targets are worth a comparison. `weigh`: losses are weighed by what half of each dimension costs
    the outputs on calibration data, where there are any. `search`: so many trials with other
    weights, drawn at random and judged by the outputs' error on calibration data (SPDY's
    coefficient search); by that of the cut alone, so it is for pipelines that repair nothing.
    `depth`: the largest share of the residual branches (attention, feed-forward, a ResNet's blocks)
    that may go whole, those of least measured effect; the knapsack then weighs a branch against
    widths. `uniform`: repeated layers stay equal, so that a plain configuration describes the
    result; of `depth` only whole blocks go.

    Exact dimensions are tried first; norm-coupled ones only when those cannot meet the target
    (`width` takes all). `floors`: the least share kept, of all or by pattern. `round_to`: keep
    multiples. `exclude`: patterns left alone, as experts are: those go by
    PruneChannels(include="expert"). `best_effort`: a target out of reach gives the best reachable
    instead of an error. `keep_class`: "auto" ties widths that the user's class needs equal and
    leaves whole what it cannot cut, where the predicted error is at most 1.1 times that of the plan
    without; "always" at any cost; "never" takes the graph where the class is lost.
    Sets `widths`. Raises TargetError naming what was reachable.
    """

    target: Target
    method: str = "auto"
    uniform: bool = False
    round_to: int = 1
    floors: float | Mapping[str, float] = FLOOR
    exclude: str | Sequence[str] | None = None
    exact_only: bool = False
    best_effort: bool = False
    weigh: bool = True
    search: int = 0
    depth: float = 0.0
    keep_class: str = "auto"

    name: ClassVar[str] = "allocate-widths"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("widths",)
    forbids: ClassVar[tuple[str, ...]] = ("plan", "dense")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"method is one of {', '.join(METHODS)}, not {self.method!r}.")
        check_mode(self.keep_class)
        if self.round_to < 1:
            raise PlanError(f"round_to is a positive integer, not {self.round_to}.")
        if self.search < 0:
            raise PlanError(f"search={self.search!r} is a number of trials, at least 0.")
        if not 0 <= self.depth < 1:
            raise PlanError(f"depth={self.depth!r} is the share that may go and lies in [0, 1).")
        if self.depth and (self.method == "share" or self.target.kind in ("width", "error")):
            raise PlanError(
                f"depth drops branches where the knapsack finds them worth least; {self.target} "
                f"with method={self.method!r} knows none: put DropLayers before the scores instead."
            )
        given = self.floors.values() if isinstance(self.floors, Mapping) else [self.floors]
        for floor in given:
            if not 0 < floor <= 1:
                raise PlanError(f"a floor is the share kept and lies in (0, 1], not {floor}.")

    def run(self, state: Compilation) -> PassResult:
        patterns = as_patterns(self.exclude)
        require_known(state.graph, patterns, find_branches(state.graph.whole) if self.depth else ())
        free = [
            d
            for d in state.graph.prunable.values()
            if d.kind != "expert" and not matches(d, patterns)
        ]
        if isinstance(self.floors, Mapping):
            require_matches(free, list(self.floors))
        exact = one_factor_each([d for d in free if d.exact], [])
        everything = exact if self.exact_only else one_factor_each(free, [])
        if not everything:
            raise TargetError(
                "no dimension can be pruned, so no target can be met; `graph.explain()` says why."
            )
        depth = None
        if self.depth:
            depth = find_depth(state, self.depth, patterns, self.uniform)
        self._weights: dict[str, float] = {}
        reached, needs = KeptClass(
            state,
            self.keep_class,
            lambda held: self._reach(state, free, exact, everything, depth, held),
            depth,
            self.target.kind not in ("width", "error"),
        ).run()
        state.class_held = True
        widths, gone = reached.allocation.widths, reached.allocation.dropped
        if reached.met and reached.why:
            state.notes.append(reached.why)
        changed = gone or any(widths.get(d.name, d.size) < d.size for d in everything)
        # branches may meet a target by themselves, and within an error there may be nothing to cut
        if not changed and not state.plan.dropped and self.target.kind != "error":
            raise PlanError(
                f"target {self.target} changes nothing: every width rounds to what it was; ask for "
                "more, or lower round_to."
            )
        state.widths = widths
        if depth is not None:
            depth.drop(state, gone)
        state.aim = Aim(str(self.target), reached.predicted, reached.measured)
        summary = f"{reached.summary(self.target)}; {self._counts(state)}"
        if depth is not None:
            summary += f", {len(gone)} of {len(depth.names)} branches offered dropped"
        details = {"widths": state.widths, "dropped": list(gone), **reached.details()}
        if needs:
            details["class"] = {
                "tied": needs.ties,
                "whole": sorted(needs.whole),
                "multiples": dict(needs.multiples),
            }
        return PassResult(bool(gone), summary, details)

    def _reach(
        self,
        state: Compilation,
        free: list[Dimension],
        exact: list[Dimension],
        everything: list[Dimension],
        depth: Depth | None,
        needs: Needs,
    ) -> Reached:
        if self.target.kind == "error":
            return Reached(Allocation(self._within_error(state, free, needs)))
        best: Reached | None = None
        for offered in (exact, everything) if len(everything) > len(exact) else (everything,):
            held = needs.reaching(d.name for d in offered)
            dimensions = [d for d in offered if d.name not in held.whole]
            if not dimensions or (self.target.kind == "width" and offered is not everything):
                continue
            solver = self._solver(state, dimensions, depth, held)
            if self.target.kind == "width":
                return Reached(solver.at_share(self.target.value))
            found = self._found(state, solver)
            if found.met:
                if offered is everything and len(everything) > len(exact):
                    state.notes.append(
                        "exact dimensions alone could not meet the target; norm-coupled ones "
                        "(residual width) were pruned too"
                    )
                found.loss = solver.loss(found.allocation)
                return found
            best = found
            best.loss = solver.loss(found.allocation)
        if best is None:
            raise TargetError(
                f"{self.target} cannot be met: every dimension that could go has to stay whole."
            )
        also = f" and all {len(depth.names)} branches offered gone" if depth is not None else ""
        words = (
            f"{self.target} cannot be met: with every dimension at its floor{also} the model "
            f"reaches {self.target.kind}={best.value:.3g}." + (f" {best.why}." if best.why else "")
        )
        if self.round_to > 1:
            words += (
                f" Widths are multiples of round_to={self.round_to}: a smaller one reaches more."
            )
        if not self.best_effort:
            raise TargetError(words)
        state.notes.append(words)
        return best

    def _found(self, state: Compilation, solver: Solver) -> Reached:
        """Counts are the same in all processes, timings are taken by the first."""
        if not self.target.measured:
            return _counted(state, solver, self.target)
        before = len(state.notes)

        def measured() -> tuple[Reached, list[str]]:
            found = closed_loop(state, solver, self.target)
            return found, state.notes[before:]

        found, notes = on_first(measured, state.graph.program.device())
        state.notes[before:] = notes
        return found

    def _solver(
        self,
        state: Compilation,
        dimensions: list[Dimension],
        depth: Depth | None = None,
        held: Needs | None = None,
    ) -> Solver:
        assert state.scores is not None
        held = held or Needs()
        one = self.method == "auto" and not state.errors and depth is None
        share = self.method == "share" or one
        left = sizes_left(state)
        lowest = {d.name: lowest_width(d, self._floor(d), self.round_to) for d in dimensions}
        lowest.update((name, left[name]) for name in state.unscored & lowest.keys())
        return Solver(
            dimensions,
            {name: min(low, left[name]) for name, low in lowest.items()},
            left,
            state.scores,
            state.errors,
            round_to=self.round_to,
            uniform=self.uniform,
            share=share,
            snap=self.target.measured,
            weigh=functools.partial(self._weighed, state) if self.weigh else None,
            search=self._search(state, depth),
            depth=depth,
            ties=held.ties,
            multiples={d.name: held.multiple(d.name) for d in dimensions},
        )

    def _weighed(
        self, state: Compilation, dimensions: Sequence[Dimension], curves: Mapping[str, np.ndarray]
    ) -> Mapping[str, float]:
        """The weight of each dimension, measured once for all allocations of a run."""
        new = [d for d in dimensions if d.name not in self._weights]
        self._weights.update(sensitivities(state, new, curves))
        return {d.name: self._weights[d.name] for d in dimensions}

    def _search(self, state: Compilation, depth: Depth | None) -> CoefficientSearch | None:
        if not self.search:
            return None
        if not state.calibration or state.graph.program.is_meta:
            raise PlanError(
                "search judges allocations on calibration data: give some, or leave it out."
            )
        return CoefficientSearch(functools.partial(allocation_error, state, depth), self.search)

    def _floor(self, dimension: Dimension) -> float:
        if not isinstance(self.floors, Mapping):
            return self.floors
        return next((s for p, s in self.floors.items() if matches(dimension, [p])), FLOOR)

    def _within_error(
        self, state: Compilation, free: list[Dimension], needs: Needs
    ) -> dict[str, int]:
        # Of a product both factors: what nothing is lost with is no share of a budget.
        known = [d for d in free if d.exact and d.name in (state.errors or {})]
        least = widths_within(known, state.errors, self.target.value)
        by_name = state.graph.dimensions
        widths = {
            name: min(
                max(
                    math.ceil(width / self.round_to) * self.round_to,
                    lowest_width(by_name[name], self._floor(by_name[name]), self.round_to),
                ),
                by_name[name].size,
            )
            for name, width in least.items()
        }
        held = needs.reaching(widths)
        for group in held.ties:
            widths.update(dict.fromkeys(group, max(widths[name] for name in group)))
        for name in widths:
            step = held.multiple(name)
            widths[name] = min(math.ceil(widths[name] / step) * step, by_name[name].size)
        widths.update((name, by_name[name].size) for name in held.whole & widths.keys())
        return widths

    def _counts(self, state: Compilation) -> str:
        by_name, widths = state.graph.dimensions, state.widths or {}
        sizes: dict[Any, int] = {by_name[name].var: size for name, size in widths.items()}
        before, after = cost(state.graph.whole), cost(state.graph, sizes)
        words = {"params": "parameters", "macs": "MACs", "bytes": "bytes"}
        pairs = {k: (getattr(after, k), getattr(before, k)) for k in words}
        kinds = ["params", "macs"] if before.params else ["bytes", "macs"]  # weights as buffers
        return ", ".join(
            f"{pairs[k][0] / pairs[k][1]:.1%} of {words[k]}" for k in kinds if pairs[k][1]
        )


def _counted(state: Compilation, solver: Solver, target: Target) -> Reached:
    """Counts are exact, so what is predicted is what comes out. Biases that are made for the means
    of dropped branches are counted once it is known where they go."""
    chosen = [d.var for d in solver.dimensions if d.var is not None]
    nesting = solver.depth.nesting if solver.depth is not None else None
    model = counted(state.graph, target.kind, chosen, nesting)
    full = counted(state.graph.whole, target.kind, []).total()
    if not full:
        raise TargetError(
            f"{target} is a share of nothing: the model has no {target.kind}, so aim at another, "
            "as bytes=0.5."
        )
    limit = budget = full * target.value

    def total_of(allocation: Allocation) -> float:
        if target.kind == "macs" or not allocation.dropped:
            return solver.cost(model, allocation)
        return _with_means(state, solver, target.kind, allocation)

    while (found := solver.within(model, limit)) is not None:
        over = total_of(found) - budget
        if over <= 0 or not found.dropped:
            break
        limit -= over
    allocation = found if found is not None else solver.smallest()
    total = total_of(allocation)
    if target.kind in ("params", "bytes"):
        state.room = target.kind, max(0.0, budget - total)
    return Reached(allocation, found is not None, total / full)


def _with_means(state: Compilation, solver: Solver, unit: str, allocation: Allocation) -> float:
    """The count of the graph without the dropped branches, with what stands in for them."""
    graph = state.graph
    if solver.depth is not None and allocation.dropped:
        graph = solver.depth.without(graph, allocation.dropped)
    widths = inherited(state.graph, graph, allocation.widths)
    sizes: dict[Any, int] = {graph.dimensions[name].var: width for name, width in widths.items()}
    return float(getattr(cost(graph, sizes), unit))
