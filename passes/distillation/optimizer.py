"""The optimizer of a training run."""

from __future__ import annotations

import torch
from torch import nn

from .losses import DistillError


def adamw(student: nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; `decay` on those of two axes and more.

    Raises:
        DistillError: there are none, or some are float16.
    """
    trainable = [p for p in student.parameters() if p.requires_grad]
    if not trainable:
        raise DistillError(
            "The smaller model has no trainable parameter: set requires_grad on the ones to"
            " train, or leave Distill out."
        )
    if any(p.dtype == torch.float16 for p in trainable):
        raise DistillError(
            "AdamW does not train float16 parameters, its epsilon rounds to zero there:"
            " compile the model in float32 or bfloat16 and cast the result."
        )
    # Biases and norm scales are not decayed: they do not overfit, and norms need their scale.
    matrices = [p for p in trainable if p.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate)
