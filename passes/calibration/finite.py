"""Values inside the model that are not finite stop a pass at once, named: no statistic of them
means anything. The manager has looked at weights, example and batches before any pass runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...compiler.errors import PlanError


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
