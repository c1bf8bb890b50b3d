"""The batches that statistics are taken on, as many as memory holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...compiler.capture.batches import forward_arguments
from ...compiler.capture.finite import FiniteCheck
from ...compiler.cause import cause
from ...compiler.errors import PlanError
from ...compiler.ir.program import Program
from ...compiler.user_code import user_batches
from ...compiler.verify.interpreter import ProgramInterpreter
from .streams import Stream, measuring

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation


def calibration_batches(
    state: Compilation, given: Iterable[Any] | None, memory: int, asks: str
) -> tuple[list[list[Any]], int]:
    """Flat inputs of the program, and how many batches were left out.

    `given`: batches as `compile` takes them; None: those of the compilation. Left out are batches
    of shapes that the captured program does not run on, and those beyond `memory`: bytes for the
    values of all batches that are alive at once while the original, and the smaller model where
    there is one, run side by side, estimated from the first batch by the size of the inputs. Raises
    PlanError, naming the pass that `asks`, where there is nothing to use, and for data or weights
    that are not finite.
    """
    program = state.graph.whole.program
    batches = (
        state.calibration
        if given is None
        else [
            program.flat_inputs(*forward_arguments(item), check=False)
            for item in FiniteCheck(state.graph.source).batches(
                user_batches("calibration", given), f"{asks}: calibration batch"
            )
        ]
    )
    if not batches or program.is_meta:
        what = "weights with values" if batches else "calibration data"
        raise PlanError(
            f"{asks} needs {what}: give calibration=, unlabelled batches, or leave the pass out."
        )
    known: dict[Any, str | None] = {_shapes(program.flat_inputs()): None}
    fitting = [flat for flat in batches if _obstacle(program, flat, known) is None]
    if not fitting:
        raise PlanError(
            f"{asks}: the captured program runs on none of the calibration batches: it was captured"
            f" with inputs of {_shown(program.flat_inputs())}, and on the first batch, of "
            f"{_shown(batches[0])}, it fails ({_obstacle(program, batches[0], known)}): give "
            "batches like the example inputs, or capture with inputs like the batches."
        )
    with measuring():
        peak = _peak(state, fitting[0])
    held, taken = 0, 0
    for flat in fitting:
        held += peak * _size(flat) // max(1, _size(fitting[0]))
        if held > memory and taken > 0:
            break
        taken += 1
    return fitting[:taken], len(batches) - taken


def _obstacle(program: Program, flat: Sequence[Any], known: dict[Any, str | None]) -> str | None:
    """Why the program does not run on inputs of these shapes, None where it does; `known`
    remembers."""
    shapes = _shapes(flat)
    if shapes not in known:
        try:
            with measuring():
                ProgramInterpreter(program)(flat)
            known[shapes] = None
        except Exception as error:  # whatever an op says of a size that capture fixed
            known[shapes] = cause(error)
    return known[shapes]


def _shapes(flat: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x.shape if isinstance(x, Tensor) else None for x in flat)


def _shown(flat: Sequence[Any]) -> str:
    return ", ".join(str(list(x.shape)) for x in flat if isinstance(x, Tensor))


def _peak(state: Compilation, flat: Sequence[Any]) -> int:
    """The most bytes that one batch leaves in the programs between two contractions."""
    programs = [state.graph.whole.program]
    if state.dense is not None:
        programs.append(state.dense.program)
    streams = [Stream(p, [flat]) for p in programs]
    peaks = [0]
    for name in dict.fromkeys(sink.node.name for sink in state.graph.inference.sinks):
        for stream in streams:
            stream.advance(stream.by_name[name])
        peaks.append(sum(stream.held_bytes() for stream in streams))
    return max(peaks)


def _size(flat: Sequence[Any]) -> int:
    return sum(x.numel() for x in flat if isinstance(x, Tensor))
