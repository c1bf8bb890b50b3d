"""Train and eval modes during a run, and what is random in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Every module in train or eval mode; afterwards each is back in its own former mode, and so
    is what a class keeps of the mode in a `train` of its own."""
    former, whole = [(m, m.training) for m in model.modules()], model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(whole)
        for module, mode in former:
            module.training = mode


@contextmanager
def in_training(model: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Train mode; without `dropout` only where learning needs it, and eval mode for all else, so
    that dropout, stochastic depth and masked inputs are off however a class writes them.

    Train mode is needed by running statistics, by layers that recompute their values (gradient
    checkpointing), and by recurrent layers on CUDA; the last two drop nothing meanwhile. torch's
    fast path of attention is off: it is for inference, and refuses some masks where gradients are
    wanted.
    """
    with in_mode(model, training=True):
        if dropout:
            yield
            return
        learning = [m for m in model.modules() if m.training and _needs_train_mode(m)]
        rates = [(m, name, getattr(m, name)) for m in learning for name in _rates(m)]
        fast = torch.backends.mha.get_fastpath_enabled()
        model.eval()
        try:
            for module in learning:
                module.training = True
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, name, rate in rates:
                setattr(module, name, rate)


def _needs_train_mode(module: nn.Module) -> bool:
    return "running_mean" in module._buffers or _drops_in_train_mode(module)


def _drops_in_train_mode(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) or bool(getattr(module, "gradient_checkpointing", False))


def _rates(module: nn.Module) -> list[str]:
    """The attributes of a layer that say how much it drops by itself: dropout, layerdrop ..."""
    if not _drops_in_train_mode(module):
        return []
    return [k for k, v in vars(module).items() if "drop" in k and isinstance(v, float) and v > 0]
