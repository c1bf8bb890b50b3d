"""A training that ends worse than it began gives back the weights it began with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HELD_OUT = 20  # of a list with so many batches the last of each so many are kept out of training
JUDGED = 4  # batches, at most


def held_out(loader: Any) -> int:
    """How many batches at the end of a loader are kept out of training to judge it by: of a list
    that has plenty. Those of other loaders come in an order of their own."""
    if not isinstance(loader, Sequence) or len(loader) < HELD_OUT:
        return 0
    return min(JUDGED, len(loader) // HELD_OUT)


class Start:
    """What training began from: the loss on some batches, and a copy of the tensors.

    `loss`: a callable that gives the mean loss of the model, as it is now, on the batches that are
    judged by. A loss that is not finite at the beginning is no measure, and nothing is undone.
    """

    def __init__(self, loss: Callable[[], float], live: Sequence[Tensor]) -> None:
        self.loss, self.before, self.after = loss, loss(), math.nan
        self.kept = [tensor.detach().clone() for tensor in live]

    @torch.no_grad()
    def undo(self, live: Sequence[Tensor]) -> bool:
        """Judge, and put the tensors back where the loss has risen; gives whether they were."""
        self.after = self.loss()
        if not math.isfinite(self.before) or self.after <= self.before:
            return False
        for tensor, kept in zip(live, self.kept, strict=True):
            tensor.copy_(kept)
        return True
