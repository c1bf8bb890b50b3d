"""How far the smaller model's outputs are from the original's, on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from ...compiler.ir.program import output_values
from ...compiler.verify.interpreter import ProgramInterpreter
from .moments import wide
from .tokens import TokenMasks

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation


def output_error(state: Compilation, batches: Sequence[Sequence[Any]]) -> float | None:
    """|smaller - original|² / |original|² over the batches, the mean of the float outputs; None
    where there is none. Padding does not count."""
    assert state.dense is not None
    program = state.graph.program
    masks = TokenMasks(program, batches)
    runs = ProgramInterpreter(program), ProgramInterpreter(state.dense.program)
    node = next(n for n in program.graph.nodes if n.op == "output")
    sources = output_values(node.args[0])
    missed: dict[int, float] = {}
    energy: dict[int, float] = {}
    for batch, flat in enumerate(batches):
        values = zip(sources, *(run(flat) for run in runs), strict=True)
        for i, (source, a, b) in enumerate(values):
            if not (
                isinstance(a, Tensor) and a.is_floating_point() and isinstance(source, fx.Node)
            ):
                continue
            a, b = wide(a), wide(b)
            tokens = masks.rows(source, batch, a.shape[:2]) if a.dim() > 2 else None
            if tokens is not None:
                own = tokens.to(a.device)
                a, b = a.flatten(0, 1)[own], b.flatten(0, 1)[own]
            finite = a.isfinite()  # a mask's -inf is right or wrong, not far
            missed[i] = missed.get(i, 0.0) + float((a - b)[finite].square().sum())
            energy[i] = energy.get(i, 0.0) + float(a[finite].square().sum())
    shares = [missed[i] / energy[i] for i in missed if energy[i] > 0]
    return sum(shares) / len(shares) if shares else None
