"""A device, looked at before anything is moved to it."""

from __future__ import annotations

from typing import Any

import torch

from .cause import cause
from .errors import PlanError


def check_device(name: Any, computes: bool = True, word: str = "--device ") -> None:
    """Raise PlanError for a device that torch does not know, or (`computes`) cannot compute on
    here; None is where the model is. `word`: how the user wrote it."""
    if name is None:
        return
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("it holds shapes and no values")
        if computes:
            torch.ones(1, device=device).sum().item()
    except Exception as error:  # each back end has its own when it is not there
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise PlanError(
            f"{word}{name} cannot be computed on here ({cause(error)}): take "
            f"{' or '.join(['cpu', *cuda])}."
        ) from error
