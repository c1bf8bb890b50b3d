"""Activation scores: how much an entry's variance contributes to the layers that read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..compiler.pass_class import Pass, PassResult
from .calibration.batches import calibration_batches
from .calibration.streams import measuring
from .magnitude_score import magnitudes
from .sensitivity.curves import contributions
from .sensitivity.entry_sums import mean_one
from .sensitivity.input_moments import Limits, measured
from .sensitivity.readings import find_readings

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation


@dataclasses.dataclass
class ActivationScore(Pass):
    """Score each entry by Var(x_j) |W_:j|² over the columns it owns, as a share of the layer's sum,
    summed over the layers that read it and divided by the mean over its dimension (WIFV of FLAP,
    An et al. 2024, eq. 5); without labels.

    Dimensions that are read by anything else than layers with weights of their own get magnitude
    scores. Sets `scores`. `calibration`, `rows`, `rows_per_input`, `memory`, `seed`, `progress`: as
    `SecondOrderScore` takes them. Raises PlanError without calibration data.
    """

    calibration: Iterable[Any] | None = None
    rows: int = 16384
    rows_per_input: int = 16
    memory: int = 2**31
    seed: int = 0
    progress: bool = True

    name: ClassVar[str] = "activation-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        self._limits = Limits(self.rows, self.rows_per_input, self.memory, self.seed)

    def run(self, state: Compilation) -> PassResult:
        batches, left_out = calibration_batches(state, self.calibration, self.memory, self.name)
        graph, show = state.graph, self.name if self.progress else None
        readings, reasons = find_readings(graph)
        scores: dict[str, Tensor] = {}
        with measuring():
            for found in measured(graph, readings, batches, self._limits, full=False, show=show):
                size = found.dimension.size
                parts = (contributions(graph.program, *own, size) for own in found.readings)
                total = sum(parts, torch.zeros(size, dtype=torch.float64))
                scores[found.name] = mean_one(total)
        state.scores = {
            name: scores[name] if name in scores else magnitudes(graph, d)
            for name, d in graph.prunable.items()
        }
        details = {
            "batches": len(batches),
            "batches left out": left_out,
            "by magnitude": reasons,
        }
        summary = f"variances of {len(scores)} dimensions"
        if reasons:
            summary += f"; {len(reasons)} others by magnitude"
        return PassResult(False, summary, details)
