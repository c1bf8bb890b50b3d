"""Run models in eval mode and leave every submodule's mode as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Within the block every submodule has `training = False`; afterwards its own value again.

    The flags are set directly: an exported GraphModule refuses `eval()`, and a model may do more
    in its own `eval` than change the flag (adapters that merge their weights).
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
