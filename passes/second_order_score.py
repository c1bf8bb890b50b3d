"""Second-order scores: what the layers that read an entry lose, once the others make up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ..compiler.errors import PlanError
from ..compiler.pass_class import Pass, PassResult
from .calibration.batches import calibration_batches
from .calibration.gram import Gram
from .calibration.reduction import EXACT, MOMENTS
from .calibration.streams import measuring
from .magnitude_score import magnitudes
from .sensitivity.curves import Curve, curve
from .sensitivity.input_moments import Limits, measured
from .sensitivity.readings import find_readings

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation


@dataclasses.dataclass
class SecondOrderScore(Pass):
    """Take the entries of each dimension out one after another, the cheapest first, while the
    others take over what they can; without labels.

    An entry costs 1/2 tr(W_Bᵀ (H⁻¹_BB)⁻¹ W_B) at each layer that reads it, with W the layer's
    weights as they are by then, B the entry's columns and H the covariance of the layer's input on
    calibration data (OBS, Hassibi & Stork 1993; in the form of ZipLM, Kurtic et al. 2023), as a
    share of the variance of the layer's output, summed over layers. Sets `scores` (the error once
    the entry has gone) and `errors` (the error at every width). Dimensions that are read by
    anything else than layers with weights of their own get magnitude scores and no errors.

    Args:
        calibration: unlabelled batches; by default those the pipeline was given.
        ridge: added to the diagonal of H, times its mean, once what is redundant has gone.
        step: entries taken out between two updates of the whole system; within a step the order is
            exact among twice as many candidates. By default a 128th of the dimension.
        rows, rows_per_input, seed, progress: as `Reconstruct` takes them.
        memory: bytes for what is held at once of all batches; batches beyond are left out. The
            moments of one layer, with what elimination makes of them, take a gigabyte at most, and
            no more than `memory`.

    A layer of more than 4096 inputs (channels times taps) is seen through 1024 directions: of each
    entry's columns those that tell most of the layer's output; what they do not tell counts as lost
    with the entry, so errors are never too low for it. Where more than 4096 entries have a column
    each, others make up for one within blocks of at most 2048; where not even blocks of 64 fit into
    memory, the variances count only. Time and memory are proportional to the layer then. The report
    names these layers.

    Raises:
        PlanError: options out of range, or no calibration data.
    """

    calibration: Iterable[Any] | None = None
    ridge: float = 1e-2
    step: int | None = None
    rows: int = 16384
    rows_per_input: int = 16
    memory: int = 2**31
    seed: int = 0
    progress: bool = True

    name: ClassVar[str] = "second-order-score"
    provides: ClassVar[tuple[str, ...]] = ("scores", "errors")
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise PlanError(f"ridge={self.ridge!r} must be at least 0.")
        for option in ("rows", "rows_per_input", "memory", "step"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise PlanError(f"{option}={value!r} must be at least 1.")

    def run(self, state: Compilation) -> PassResult:
        batches, left_out = calibration_batches(state, self.calibration, self.memory, self.name)
        held = min(self.memory, MOMENTS)
        limits = Limits(self.rows, self.rows_per_input, held, self.seed)
        graph, show = state.graph, self.name if self.progress else None
        readings, reasons = find_readings(graph)
        curves: dict[str, Curve] = {}
        few: dict[str, None] = {}
        large: dict[str, None] = {}
        wide: dict[str, str] = {}
        with measuring():
            for found in measured(graph, readings, batches, limits, full=True, show=show):
                curves[found.name] = curve(graph.program, found, self.ridge, self.step)
                for gram, own in found.readings:
                    layers = dict.fromkeys(r.consumer.weight for r in own)
                    few |= layers if gram.count < gram.x.shape[1] else {}
                    large |= {} if gram.full else layers
                    wide |= dict.fromkeys(layers, _approximated(gram)) if gram.approximate else {}
        state.scores = {
            name: curves[name].scores if name in curves else magnitudes(graph, d)
            for name, d in graph.prunable.items()
        }
        state.errors = {name: found.errors for name, found in curves.items()}
        details = {
            "batches": len(batches),
            "batches left out": left_out,
            "by magnitude": reasons,
            "fewer rows than inputs": list(few),
            "variances only": list(large),
            "approximated": wide,
        }
        summary = f"errors by width of {len(curves)} dimensions"
        if reasons:
            summary += f"; {len(reasons)} others by magnitude"
        if wide:
            summary += f"; {len(wide)} wide layers through fewer directions or in blocks"
            state.notes.append(
                f"the scores see {len(wide)} layers of more than {EXACT} inputs, or more than"
                " memory allows, through fewer directions or in blocks, as the report says of each"
            )
        return PassResult(False, summary, details)


def _approximated(gram: Gram) -> str:
    """What is not seen of a layer's inputs."""
    told: list[str] = []
    if gram.reduction is not None:
        groups, columns, count = gram.reduction.basis.shape[1:]
        told.append(f"{groups} groups of up to {columns} inputs through {count} directions each")
    if gram.blocks > 1:
        told.append(f"{gram.blocks} blocks of {gram.x.shape[1]} that do not make up for each other")
    return "; ".join(told)
