"""Remove whole residual branches and blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import nn

from ..compiler.capture.batch import batch_size
from ..compiler.capture.examples import fresh_inputs
from ..compiler.compilation import Compilation
from ..compiler.errors import PlanError
from ..compiler.inference.branches import Branch, find_branches, fits
from ..compiler.pass_class import Pass, PassResult
from ..compiler.report import BranchReport
from ..compiler.rewrite.selection import as_patterns, check_ratio
from ..compiler.rewrite.zero_branches import drop_of
from .calibration.batches import calibration_batches
from .calibration.effects import Effect, branch_effects, droppable

CHOICES = ("effect", "even")
UNITS = ("block", "branch", "any")
REPLACE = ("auto", "mean", "nothing")
RANDOM_DRAWS = 2


@dataclasses.dataclass
class DropLayers(Pass):
    """Plan the removal of residual branches or blocks, least effect first.

    Effect is the squared error of the model's outputs against the original's, relative to those, on
    calibration data (on random inputs where there is none); after each removal what remains is
    measured again, so it is that of all removals together. What is dropped adds nothing from then
    on, or the mean of what it added, which goes into the bias of the layer before where there is
    one. Dimensions are found anew in what remains, so this stands before scores.

    Args:
        ratio: the share of the units to remove ("any": of the branches, a block counts as those it
            holds).
        count: how many to remove, instead of a ratio.
        choice: "effect", or "even": what stays is spread evenly from the first to the last unit,
            without measuring which matter (six of twelve are 0, 2, 4, 7, 9, 11: the student of
            Sanh et al., "DistilBERT", 2019). A student is then trained by Distill.
        unit: "block" (a whole repeated layer), "branch" (one residual sum), or "any".
        tolerance: remove nothing that brings the effect above it; alone, all that stays below.
        replace: "auto" (the mean where it measures better and a bias can take it), "mean" or
            "nothing". Without calibration data nothing takes a branch's place.
        include, exclude: patterns on names of branches or of the tensors they hold.
        calibration: unlabelled batches; by default those the pipeline was given.
        samples: at most about so many samples are used (whole batches, at least one).
        memory: bytes for the values of a batch (see Reconstruct).
        seed: of the random inputs.
        progress: show a bar per round, on terminals.

    Raises:
        PlanError: options out of range, no branch to remove, a pattern that fits none, a ratio or
            count that removes nothing.
    """

    ratio: float | None = None
    count: int | None = None
    choice: str = "effect"
    unit: str = "block"
    tolerance: float | None = None
    replace: str = "auto"
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    calibration: Iterable[Any] | None = None
    samples: int = 256
    memory: int = 2**31
    seed: int = 0
    progress: bool = True

    name: ClassVar[str] = "drop-layers"
    provides: ClassVar[tuple[str, ...]] = ("dropped",)
    forbids: ClassVar[tuple[str, ...]] = ("dense", "scores", "widths")

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise PlanError(f"unit is one of {', '.join(UNITS)}, not {self.unit!r}.")
        if self.choice not in CHOICES:
            raise PlanError(f"choice is one of {', '.join(CHOICES)}, not {self.choice!r}.")
        if self.choice == "even" and (not self._asked or self.unit == "any"):
            raise PlanError('choice="even" needs a ratio or a count, of blocks or of branches.')
        if self.replace not in REPLACE:
            raise PlanError(f"replace is one of {', '.join(REPLACE)}, not {self.replace!r}.")
        if self.ratio is not None and self.count is not None:
            raise PlanError("DropLayers takes a ratio or a count, not both.")
        if self.ratio is None and self.count is None and self.tolerance is None:
            raise PlanError("DropLayers needs a ratio, a count or a tolerance.")
        if self.ratio is not None:
            check_ratio(self.ratio)
        for option, least in (("count", 0), ("tolerance", 0), ("samples", 1), ("memory", 1)):
            value = getattr(self, option)
            if value is not None and not value >= least:
                raise PlanError(f"{option}={value!r} must be at least {least}.")

    def run(self, state: Compilation) -> PassResult:
        found, branches = self._chosen(state)
        if not branches:
            return PassResult(False, "no branch or block to drop")
        wanted = self._wanted(branches)
        if wanted == 0:
            return PassResult(False, "nothing was asked for")
        batches, data = self._batches(state)
        replace = self.replace if data == "calibration data" else "nothing"
        spaced = evenly_spaced(branches, wanted) if self.choice == "even" else None
        dropped: dict[str, Effect] = {}
        seen: dict[str, Effect] = {}
        gone = 0
        while wanted is None or gone < wanted:
            left = droppable(state.graph, branches)
            if spaced is not None:
                left = [b for b in left if b.name in spaced][:1]
            if not left:
                break
            bar = f"drop-layers, {len(dropped)} dropped" if self.progress else ""
            effects = branch_effects(state.graph, left, batches, replace, bar)
            seen.update(effects)
            best = min(left, key=lambda b: effects[b.name].error)
            effect = effects[best.name]
            if self.tolerance is not None and effect.error > self.tolerance:
                break
            state.drop([drop_of(state.graph, best, effect.constant, effect.axis)])
            dropped[best.name] = effect
            gone += self._weight(best, branches)
        if not dropped and self.tolerance is None:
            raise PlanError("DropLayers removes nothing: no branch can be dropped.")
        self._tell(state, found, branches, dropped, seen)
        return self._result(branches, dropped, data, len(batches))

    @property
    def _asked(self) -> bool:
        """Whether something has to go: a tolerance alone may find nothing."""
        return self.ratio is not None or self.count is not None

    def _chosen(self, state: Compilation) -> tuple[list[Branch], list[Branch]]:
        """All of the unit, and those that may be dropped."""
        if state.graph.program.is_meta:
            raise PlanError("DropLayers measures, and weights on the meta device have no values.")
        found = [
            b for b in find_branches(state.graph) if self.unit == "any" or self.unit in b.units
        ]
        for pattern in (*as_patterns(self.include), *as_patterns(self.exclude)):
            if not any(fits(b, [pattern]) for b in found):
                names = ", ".join(b.name for b in found[:8])
                raise PlanError(f"pattern '{pattern}' fits no {self.unit}; there are {names}.")
        include, exclude = as_patterns(self.include), as_patterns(self.exclude)
        chosen = [b for b in found if not include or fits(b, include)]
        chosen = [b for b in chosen if not fits(b, exclude)]
        if not chosen and self._asked:
            what = "branch or block" if self.unit == "any" else self.unit
            raise PlanError(
                f"DropLayers found no {what} to drop: a residual sum has two values of one shape, "
                "and a block is a member of a module list or repeats; try another unit."
            )
        return found, chosen

    def _wanted(self, branches: Sequence[Branch]) -> int | None:
        """How many go at most; None: as many as the tolerance lets."""
        if self.count is not None:
            if self.count > len(branches):
                raise PlanError(
                    f"count={self.count} is more than the {len(branches)} that can be dropped."
                )
            return self.count
        if self.ratio is None:
            return None
        units = [b for b in branches if "branch" in b.units] if self.unit == "any" else branches
        wanted = round(self.ratio * len(units))
        if wanted == 0 and self.ratio > 0:
            raise PlanError(
                f"DropLayers removes nothing: a ratio of {self.ratio} of {len(units)} rounds to "
                "none; raise the ratio, or give a count."
            )
        return wanted

    def _weight(self, branch: Branch, branches: Sequence[Branch]) -> int:
        """What one removal counts: with unit "any" and a ratio, the branches it holds."""
        if self.unit != "any" or self.ratio is None:
            return 1
        inside = {*branch.nodes, branch.result}
        return max(1, sum("branch" in b.units and b.result in inside for b in branches))

    def _batches(self, state: Compilation) -> tuple[list[list[Any]], str]:
        program = state.graph.whole.program
        if self.calibration is None and not state.calibration:
            draws = (
                fresh_inputs(program.args, program.kwargs, seed=self.seed + i)
                for i in range(RANDOM_DRAWS)
            )
            return [program.flat_inputs(*draw) for draw in draws], "random inputs"
        held, _ = calibration_batches(state, self.calibration, self.memory, self.name)
        rows = [batch_size(tuple(flat), {}) or 1 for flat in held]
        taken = 1
        while taken < len(held) and sum(rows[: taken + 1]) <= self.samples:
            taken += 1
        return held[:taken], "calibration data"

    def _tell(
        self,
        state: Compilation,
        found: Sequence[Branch],
        chosen: Sequence[Branch],
        dropped: dict[str, Effect],
        seen: dict[str, Effect],
    ) -> None:
        """What became of each branch, for the report."""
        tensors = state.graph.whole.program.tensors
        left = {b.name for b in droppable(state.graph, found)}
        for b in found:
            effect = seen.get(b.name)
            if b.name in dropped:
                mean = dropped[b.name].constant is not None
                reason = "its mean" if mean else "nothing"
            elif b.name not in left:
                reason = "gone with another"
            elif b not in chosen:
                reason = "left out by include or exclude"
            elif self.tolerance is not None and effect and effect.error > self.tolerance:
                reason = "above the tolerance"
            else:
                reason = "not chosen: others had less effect"
            held = (tensors[n] for n in b.tensors if n in tensors)
            count = sum(t.numel() for t in held if isinstance(t, nn.Parameter))
            gone = "dropped" if b.name in dropped or b.name not in left else "kept"
            error = effect.error if effect is not None else None
            state.branches[b.name] = BranchReport(b.name, b.unit, gone, reason, error, count)

    def _result(
        self, branches: Sequence[Branch], dropped: dict[str, Effect], data: str, batches: int
    ) -> PassResult:
        what = {"block": "blocks", "branch": "branches", "any": "branches and blocks"}[self.unit]
        last = next(reversed(dropped.values()), None)
        effect = f", output error {last.error:.3g}" if last is not None else ""
        summary = f"{len(dropped)} of {len(branches)} {what} dropped{effect}, measured on {data}"
        details = {
            "dropped": {name: effect.error for name, effect in dropped.items()},
            "by their means": [n for n, effect in dropped.items() if effect.constant is not None],
            "measured on": data,
            "batches": batches,
        }
        return PassResult(bool(dropped), summary, details)


def evenly_spaced(branches: Sequence[Branch], count: int | None) -> set[str]:
    """The names of the `count` that go, so that those that stay lie evenly from first to last."""
    kept = len(branches) - (count or 0)
    step = (len(branches) - 1) / max(1, kept - 1)
    stay = {math.floor(i * step + 0.5) for i in range(kept)}
    return {b.name for i, b in enumerate(branches) if i not in stay}
