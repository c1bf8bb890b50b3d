"""Choose how many entries every dimension keeps, to meet a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..compiler.compilation import Compilation
from ..compiler.emit.build import emit
from ..compiler.errors import PlanError, TargetError
from ..compiler.inference.dimensions import Dimension
from ..compiler.measure.cost import cost
from ..compiler.measure.model_timing import compare_modules
from ..compiler.passmanager import Pass, PassResult
from ..compiler.rewrite.rewrite import rewrite
from ..compiler.rewrite.selection import as_patterns, kept_count, matches, one_factor_each
from ..compiler.target import Target

FLOOR = 0.05  # the smallest share a target may leave of a dimension
MEASUREMENTS = 7
CLOSE = 0.03


@dataclasses.dataclass
class AllocateWidths(Pass):
    """One share for every dimension (one factor per product), found so that the target is met.

    `width` is that share itself. `params`, `macs` and `bytes` are met by bisection on exact costs;
    `speedup` and `latency_ms` by measuring rewritten candidates side by side with the original.
    Exact dimensions are tried first; norm-coupled ones only when those cannot meet the target
    (`width` takes all). `round_to`: keep multiples. `exclude`: patterns left alone, as
    experts are: those go by PruneChannels(include="expert"). Sets `widths`.
    Raises TargetError naming what was reachable.
    """

    target: Target
    round_to: int = 1
    exclude: str | Sequence[str] | None = None
    exact_only: bool = False

    name: ClassVar[str] = "allocate-widths"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("widths",)
    forbids: ClassVar[tuple[str, ...]] = ("plan", "dense")

    def run(self, state: Compilation) -> PassResult:
        free = [
            d
            for d in state.graph.prunable.values()
            if d.kind != "expert" and not matches(d, as_patterns(self.exclude))
        ]
        exact = one_factor_each([d for d in free if d.exact], [])
        everything = exact if self.exact_only else one_factor_each(free, [])
        if not everything:
            raise TargetError(
                "no dimension can be pruned, so no target can be met; `graph.explain()` says why."
            )
        if self.target.kind == "width":
            widths = self._widths(everything, self.target.value)
            share = self.target.value
        else:
            share, widths = self._search(state, exact, everything)
        changed = any(widths.get(d.name, d.size) < d.size for d in everything)
        if not changed and not state.plan.dropped:  # branches may meet a target by themselves
            raise PlanError(
                f"target {self.target} changes nothing: every width rounds to what it was; ask for "
                "more, or lower round_to."
            )
        state.widths = widths
        reached = self._reached(state, widths)
        summary = f"{self.target}: share {share:.3f} of {len(widths)} dimensions; {reached}"
        return PassResult(False, summary, {"share": share, "widths": widths})

    def _widths(self, dimensions: Sequence[Dimension], share: float) -> dict[str, int]:
        return {d.name: kept_count(d, 1 - share, self.round_to) for d in dimensions}

    def _reached(self, state: Compilation, widths: dict[str, int]) -> str:
        before, after = cost(state.graph.whole), cost(state.graph, _sizes(state, widths))
        macs = after.macs / before.macs if before.macs else 1.0
        return f"{after.params / before.params:.1%} of parameters, {macs:.1%} of MACs"

    def _search(
        self, state: Compilation, exact: list[Dimension], everything: list[Dimension]
    ) -> tuple[float, dict[str, int]]:
        find = self._measured if self.target.measured else self._counted
        best = 0.0
        for dimensions in (exact, everything) if len(everything) > len(exact) else (everything,):
            if not dimensions:
                continue
            found, reached = find(state, dimensions)
            if found is not None:
                if dimensions is everything and len(everything) > len(exact):
                    state.notes.append(
                        "exact dimensions alone could not meet the target; norm-coupled ones "
                        "(residual width) were pruned too"
                    )
                return found, self._widths(dimensions, found)
            best = reached
        raise TargetError(
            f"{self.target} cannot be met: with every dimension at {FLOOR:.0%} the model reaches "
            f"{self.target.kind}={best:.3g}."
        )

    def _counted(
        self, state: Compilation, dimensions: list[Dimension]
    ) -> tuple[float | None, float]:
        """Bisection on the share; costs are exact and take microseconds."""
        full = getattr(cost(state.graph.whole), self.target.kind)

        def kept(share: float) -> float:
            sizes = _sizes(state, self._widths(dimensions, share))
            return getattr(cost(state.graph, sizes), self.target.kind) / max(full, 1)

        if kept(FLOOR) > self.target.value:
            return None, kept(FLOOR)
        low, high = FLOOR, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) <= self.target.value else (low, middle)
        return low, kept(low)

    def _measured(
        self, state: Compilation, dimensions: list[Dimension]
    ) -> tuple[float | None, float]:
        """A secant search on log speed-up over log share, every point measured side by side."""
        tried: dict[tuple[int, ...], Any] = {}

        def speedup(share: float) -> float:
            widths = self._widths(dimensions, share)
            key = tuple(widths.values())
            if key not in tried:
                tried[key] = self._time(state, widths)
            return tried[key]

        wanted = self._wanted(state, speedup(FLOOR))
        if tried and wanted > next(iter(tried.values())) * (1 + CLOSE):
            return None, self._as_target(state, next(iter(tried.values())))
        points = {FLOOR: speedup(FLOOR), 1.0: 1.0}
        share = 1.0
        for _ in range(MEASUREMENTS):
            low = max((s for s in points if points[s] >= wanted), default=FLOOR)
            high = min((s for s in points if points[s] < wanted and s > low), default=1.0)
            a, b = math.log(points[low]), math.log(max(points[high], 1e-6))
            along = 0.5 if abs(a - b) < 1e-9 else (a - math.log(wanted)) / (a - b)
            along = min(0.85, max(0.15, along))
            share = math.exp(math.log(low) + along * (math.log(high) - math.log(low)))
            points[share] = speedup(share)
            if abs(points[share] / wanted - 1) <= CLOSE:
                break
        met = [s for s in points if points[s] >= wanted * (1 - CLOSE)]
        share = max(met)
        return share, self._as_target(state, points[share])

    def _wanted(self, state: Compilation, fastest: float) -> float:
        if self.target.kind == "speedup":
            return self.target.value
        return self._original_ms / self.target.value

    def _as_target(self, state: Compilation, speedup: float) -> float:
        return speedup if self.target.kind == "speedup" else self._original_ms / speedup

    def _time(self, state: Compilation, widths: dict[str, int]) -> float:
        """The measured speed-up of a candidate with the first entries kept: time does not depend on
        which entries those are."""
        graph = state.graph
        kept = {
            d.var: torch.arange(widths[d.name])
            for d in graph.prunable.values()
            if d.var is not None and widths.get(d.name, d.size) < d.size
        }
        if not kept and (self.target.kind == "speedup" or self._original_ms):
            return 1.0
        candidate = graph.source
        if kept:
            candidate = emit(graph, rewrite(graph, kept), kept, trainable=False)[0].model
        program = graph.program
        comparison = compare_modules(
            graph.source,
            candidate,
            program.args,
            program.kwargs,
            runtime=self.target.runtime,
            device=str(program.device()),
            batch=self.target.batch,
        )
        self._original_ms = comparison.before.median_ms
        return comparison.ratio

    _original_ms: float = dataclasses.field(default=0.0, init=False, repr=False)


def _sizes(state: Compilation, widths: dict[str, int]) -> dict[Any, int]:
    by_name = state.graph.dimensions
    return {by_name[name].var: size for name, size in widths.items()}
