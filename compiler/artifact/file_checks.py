"""The rows of ONNX files and of the module: by compile and by verify, on the same inputs with the
same limits."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from ..capture.batch import Arguments
from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call
from ..errors import ExportError
from ..onnx_files.names import input_tensors
from ..onnx_files.parity import prove_parity, rounding
from ..onnx_files.quantize import INT8_LIMIT, fits, int8_error
from ..verify.check import Check
from ..verify.interpreter import full_precision
from ..verify.judge import MOST, blindness, reversed_tensor, shift

ONNX, INT8 = "ONNX == graph", "int8 == graph (RMS)"
ONNX_LIMIT = 1e-3
# Another processor rounds int8 products otherwise; a file that is damaged is further off.
SLACK, SLACK_SHARE = 0.02, 1.5


def flat_outputs(module: nn.Module, call: Arguments) -> list[Any]:
    """The flat outputs of a call, in full precision."""
    args, kwargs = copied_call(*call)
    with torch.no_grad(), full_precision():
        return pytree.tree_leaves(module(*args, **kwargs))


def moved(module: nn.Module, calls: Sequence[Arguments]) -> float:
    """How far the outputs move when every weight is in the opposite order, on the first call or,
    where that shows nothing, another."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wrong = {name: reversed_tensor(name, t.detach()) for name, t in tensors.items()}
    worst = 0.0
    for args, kwargs in calls:
        with torch.no_grad(), full_precision(), eval_mode(module):
            right = pytree.tree_leaves(module(*args, **kwargs))
            found = shift(
                lambda: pytree.tree_leaves(
                    torch.func.functional_call(module, wrong, args, kwargs)  # noqa: B023
                ),
                right,
            )
        worst = max(worst, found)
        if blindness(worst, (), calls) == "":
            break
    return min(worst, MOST)


def onnx_check(
    graph: nn.Module, calls: Sequence[Arguments], path: pathlib.Path, sensitivity: float
) -> Check:
    """The float file against the graph. Raises ExportError where it differs."""
    chosen = _taken(graph, calls, path)
    named = {f"sample {i + 1}": call for i, call in enumerate(chosen)}
    with eval_mode(graph), torch.no_grad():
        parity = prove_parity(graph, named, path, tolerance=ONNX_LIMIT)
    limit = max([ONNX_LIMIT, *(rounding(p.dtype) for p in graph.parameters())])
    why = blindness(sensitivity, (), chosen)
    count = len(chosen)
    error = parity.max_rel_error
    return Check(ONNX, error, "onnxruntime", count, limit, sensitivity=sensitivity, unproven=why)


def int8_check(
    graph: nn.Module,
    calls: Sequence[Arguments],
    path: pathlib.Path,
    sensitivity: float,
    stated: float | None = None,
) -> Check:
    """The int8 file against the graph: the relative root mean square error. `stated`: what the
    compile measured, from which a file that is as it was is not far."""
    chosen = _taken(graph, calls, path)
    error = int8_error(graph, chosen, path)
    limit = INT8_LIMIT if stated is None else min(INT8_LIMIT, SLACK_SHARE * stated + SLACK)
    why = blindness(sensitivity, (), chosen)
    count = len(chosen)
    return Check(INT8, error, "onnxruntime", count, limit, sensitivity=sensitivity, unproven=why)


def _taken(graph: nn.Module, calls: Sequence[Arguments], path: pathlib.Path) -> list[Arguments]:
    """The calls of sizes that a file takes. Raises ExportError where there is none."""
    chosen = [call for call in calls if fits(path, input_tensors(graph, *call))]
    if not chosen:
        raise ExportError(
            f"{path.name} takes none of the samples that it was compiled with: it is damaged or of "
            "another compile, write the artifact again."
        )
    return chosen
