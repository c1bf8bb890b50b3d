"""The batches that statistics are taken on, as many as memory holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...compiler.capture.batches import forward_arguments
from ...compiler.errors import PlanError
from .streams import Stream, measuring

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation


def calibration_batches(
    state: Compilation, given: Iterable[Any] | None, memory: int, asks: str
) -> tuple[list[list[Any]], int]:
    """Flat inputs of the program, and how many more batches did not fit.

    `given`: batches as `compile` takes them; None: those of the compilation. `memory`: bytes for
    the values of all batches that are alive at once while the original and the smaller model run
    side by side; estimated from the first batch, by the size of the inputs. One batch is always
    used. Raises PlanError, naming the pass that `asks`, without any.
    """
    program = state.graph.program
    batches = (
        state.calibration
        if given is None
        else [program.flat_inputs(*forward_arguments(item)) for item in given]
    )
    if not batches or program.is_meta:
        what = "weights with values" if batches else "calibration data"
        raise PlanError(
            f"{asks} needs {what}: give calibration=, unlabelled batches, or leave the pass out."
        )
    one = _size(batches[0])
    with measuring():
        peak = _peak(state, batches[0])
    used = 0
    for taken, flat in enumerate(batches):
        used += peak * _size(flat) // max(1, one)
        if used > memory and taken > 0:
            return batches[:taken], len(batches) - taken
    return batches, 0


def _peak(state: Compilation, flat: Sequence[Any]) -> int:
    """The most bytes that one batch leaves in both programs between two contractions."""
    assert state.dense is not None
    streams = [Stream(p, [flat]) for p in (state.graph.program, state.dense.program)]
    peaks = [0]
    for name in dict.fromkeys(sink.node.name for sink in state.graph.inference.sinks):
        for stream in streams:
            stream.advance(stream.by_name[name])
        peaks.append(sum(stream.held_bytes() for stream in streams))
    return max(peaks)


def _size(flat: Sequence[Any]) -> int:
    return sum(x.numel() for x in flat if isinstance(x, Tensor))
