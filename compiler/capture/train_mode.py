"""Run a model in train mode and leave its modes and its buffers as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Within the block every submodule has `training = True`, and nothing is differentiated;
    afterwards modes are as before, and so are buffers (running statistics)."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for module, _ in modes:
            module.training = True
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
