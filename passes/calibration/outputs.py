"""How far a model's outputs are from the original's, on calibration data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from ...compiler.ir.program import Program, output_values
from ...compiler.verify.interpreter import ProgramInterpreter
from .finite import refuse_rows
from .moments import wide
from .tokens import TokenMasks

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation


class OutputError:
    """|found - expected|² / |expected|² over batches, the mean of the float outputs. Padding does
    not count. `program`: the original, by whose outputs padding is known. Raises PlanError where
    the original's are NaN."""

    def __init__(self, program: Program, masks: TokenMasks) -> None:
        node = next(n for n in program.graph.nodes if n.op == "output")
        self.masks = masks
        self._sources = output_values(node.args[0])
        self._missed: dict[int, float] = {}
        self._energy: dict[int, float] = {}

    def add(self, batch: int, expected: Sequence[Any], found: Sequence[Any]) -> None:
        """Count a batch in, by its number among those the masks are of."""
        values = zip(self._sources, expected, found, strict=True)
        for i, (source, a, b) in enumerate(values):
            if not (
                isinstance(a, Tensor) and a.is_floating_point() and isinstance(source, fx.Node)
            ):
                continue
            a, b = wide(a), wide(b)
            tokens = self.masks.rows(source, batch, a.shape[:2]) if a.dim() > 2 else None
            if tokens is not None:
                own = tokens.to(a.device)
                a, b = a.flatten(0, 1)[own], b.flatten(0, 1)[own]
            if bool(a.isnan().any()):
                refuse_rows(a, source.name, batch, "gives")
            finite = a.isfinite()  # a mask's -inf is right or wrong, not far
            missed = float((a - b)[finite].square().sum())
            self._missed[i] = self._missed.get(i, 0.0) + missed
            self._energy[i] = self._energy.get(i, 0.0) + float(a[finite].square().sum())

    @property
    def value(self) -> float | None:
        """The error so far; None where there is no float output that is not zero."""
        shares = [self._missed[i] / e for i, e in self._energy.items() if e > 0]
        return sum(shares) / len(shares) if shares else None


def output_error(state: Compilation, batches: Sequence[Sequence[Any]]) -> float | None:
    """The error of the smaller model against the original; None where no output tells."""
    return output_errors(state, batches, ())[0]


def output_errors(
    state: Compilation, batches: Sequence[Sequence[Any]], some: Collection[int]
) -> tuple[float | None, float | None]:
    """The error of the smaller model against the original on all batches, and on some of them, by
    number; None where no output tells."""
    assert state.dense is not None
    program = state.graph.whole.program
    masks = TokenMasks(program, batches)
    errors = OutputError(program, masks), OutputError(program, masks)
    original, smaller = ProgramInterpreter(program), ProgramInterpreter(state.dense.program)
    for batch, flat in enumerate(batches):
        expected, found = original(flat), smaller(flat)
        errors[0].add(batch, expected, found)
        if batch in some:
            errors[1].add(batch, expected, found)
    return errors[0].value, errors[1].value
