"""Data and weights that are not finite stop a pass at once, named: no statistic of them means
anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.errors import PlanError
from ...compiler.ir.program import Program


def refuse_inputs(batches: Sequence[Sequence[Any]]) -> None:
    """Raise PlanError for a batch (flat inputs of the program) that holds a NaN or an infinity. A
    tensor with nothing above 0 may hold -inf: it is a mask that is added to scores."""
    for number, flat in enumerate(batches):
        for x in flat:
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                continue
            if bool(x.isfinite().all()):
                continue
            mask = not x.is_complex() and not bool(x.isnan().any()) and not bool((x > 0).any())
            if not mask:
                raise PlanError(
                    f"calibration batch {number} (counted from 0) holds a NaN or an infinity, in an"
                    f" input of shape {list(x.shape)}: clean the data, or leave that batch out."
                )


def refuse_weights(program: Program) -> None:
    """Raise PlanError for a parameter that holds a NaN or an infinity, or a buffer with a NaN."""
    for name, tensor in program.tensors.items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        bad = ~tensor.isfinite() if isinstance(tensor, nn.Parameter) else tensor.isnan()
        if bool(bad.any()):
            raise not_finite(f"the weight '{name}'")


def refuse_rows(total: Tensor, layer: str, batch: int, of: str = "read") -> None:
    """Raise PlanError where a sum over what a layer has `read` so far, up to a calibration batch,
    is not finite: a NaN and an infinity stay in a sum."""
    if not bool(torch.isfinite(total).all()):
        raise PlanError(
            f"what '{layer}' {of} is not finite on calibration batch {batch} (counted from 0):"
            " leave that batch out, or find the layer before it that overflows; float32 has more"
            " room than float16."
        )


def not_finite(what: str) -> PlanError:
    """The error for weights and what is made of them."""
    return PlanError(
        f"{what} holds a NaN or an infinity: mend the checkpoint, or put finite values there."
    )
