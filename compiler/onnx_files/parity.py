"""How far an .onnx file's outputs are from the model's, on the same inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.batch import Arguments
from ..capture.examples import copied_call
from ..cause import cause
from ..errors import ExportError
from .names import input_tensors, output_tensors
from .session import OnnxSession


@dataclasses.dataclass(frozen=True)
class Parity:
    """The worst disagreement over all outputs and calls, and what could not be compared.

    `max_rel_error` is relative to the largest finite value of the model's output.
    """

    inputs: list[str]
    outputs: list[str]
    max_abs_error: float
    max_rel_error: float
    notes: list[str]


def prove_parity(
    module: nn.Module,
    calls: Mapping[str, Arguments],
    path: Path,
    *,
    tolerance: float,
) -> Parity:
    """Compare the file with `module` (in eval mode, without gradients) on each call.

    `calls`: the first is the example; others, at other sizes, by what they are ("batch 3"). Those
    the model itself may refuse to run: that is noted, not an error.

    Raises:
        ExportError: an output differs by more than `tolerance`, or is NaN on either side.
    """
    session = OnnxSession(path)
    worst_abs = worst_rel = 0.0
    notes: list[str] = []
    for place, (kind, call) in enumerate(calls.items()):
        try:
            expected = reference_outputs(module, *call)
        except ExportError:
            if place == 0:
                raise
            notes.append(f"{kind} was not compared: the model itself fails there")
            continue
        actual = session.run(input_tensors(module, *call))
        for name, a, b in zip(session.outputs, expected.values(), actual, strict=True):
            where = f"output '{name}'" + (f" at {kind}" if place else "")
            error_abs, error_rel = _errors(a, b, where)
            allowed = max(tolerance, rounding(a.dtype))
            if error_rel > allowed:
                raise ExportError(
                    f"The ONNX file differs from the model in {where}: {error_rel:.1e} of its"
                    f" largest value, {allowed:.0e} allowed; export in float32 or with another"
                    " opset, or raise `tolerance` if that difference is acceptable."
                )
            worst_abs, worst_rel = max(worst_abs, error_abs), max(worst_rel, error_rel)
    return Parity(session.inputs, session.outputs, worst_abs, worst_rel, notes)


def reference_outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """What the model itself gives, by output name.

    Raises:
        ExportError: the model cannot run the call, gives NaN, or returns more than tensors.
    """
    try:
        args, kwargs = copied_call(args, kwargs)
        result = module(*args, **kwargs)
    except Exception as error:  # whatever the model's own code raises
        raise ExportError(
            f"The model fails on the example inputs: {cause(error)}; give inputs that it can run,"
            " on its device and in its dtype."
        ) from error
    outputs = output_tensors(result)
    for name, value in outputs.items():
        if value.is_floating_point() and value.isnan().any():
            raise ExportError(
                f"The model itself gives NaN in output '{name}': check its weights and the example"
                " inputs."
            )
    return outputs


def _errors(expected: Tensor, actual: Tensor, where: str) -> tuple[float, float]:
    if tuple(expected.shape) != tuple(actual.shape):
        raise ExportError(
            f"The ONNX file gives shape {tuple(actual.shape)} for {where}, the model"
            f" {tuple(expected.shape)}: export with dynamic_batch=False."
        )
    if expected.is_complex():
        expected = torch.view_as_real(expected.resolve_conj())
    a, b = expected.detach().cpu().double(), actual.double()
    if b.isnan().any():
        raise ExportError(
            f"The ONNX file gives NaN in {where} where the model does not: export in float32 or"
            " with another opset."
        )
    if a.numel() == 0:
        return 0.0, 0.0
    # Equal infinities (masked logits) are no difference; their difference would be NaN.
    difference = torch.where(a == b, 0.0, (a - b).abs()).max().item()
    scale = torch.where(a.isfinite(), a.abs(), 0.0).max().item()
    return difference, difference / scale if scale else difference


def rounding(dtype: torch.dtype) -> float:
    """The error that is granted to outputs of a dtype, whatever the tolerance."""
    half = dtype in (torch.float16, torch.bfloat16)
    return 8 * torch.finfo(dtype).eps if half else 0.0
