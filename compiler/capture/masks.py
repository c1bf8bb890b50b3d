"""Masks of torch.nn.utils.prune: a layer computes its weight as weight_orig * weight_mask in a hook
before each forward. What is captured is the product, as the parameter it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from ..cause import cause
from ..errors import CaptureError
from .copies import copy_sharing


def masked(model: nn.Module) -> list[str]:
    """The names of the parameters that a mask is attached to."""
    return [
        f"{path}.{hook._tensor_name}".lstrip(".")
        for path, module in model.named_modules()
        for hook in _hooks(module).values()
    ]


def without_masks(model: nn.Module) -> nn.Module:
    """The model itself where it has no masks; else a copy whose weights hold their zeros, with the
    names from before there were masks. Other tensors are shared with the model. Weights that are
    one tensor under one mask stay one. Raises CaptureError where the model cannot be copied."""
    if not masked(model):
        return model
    try:
        plain = copy_sharing(model)
    except Exception as error:  # whatever the user's objects raise when copied
        raise CaptureError(
            f"{type(model).__name__} has masks of torch.nn.utils.prune and cannot be copied to take"
            f" them off ({cause(error)}): make them permanent with prune.remove(module, name)."
        ) from error
    made: list[tuple[Tensor, Tensor, nn.Parameter]] = []
    for module in plain.modules():
        for key, hook in _hooks(module).items():
            _take_off(module, hook, made)
            del module._forward_pre_hooks[key]
            for flags in (
                module._forward_pre_hooks_with_kwargs,
                getattr(module, "_forward_pre_hooks_always_called", {}),
            ):
                flags.pop(key, None)
    return plain


def _hooks(module: nn.Module) -> dict[int, Any]:
    hooks = module._forward_pre_hooks.items()
    return {key: hook for key, hook in hooks if isinstance(hook, BasePruningMethod)}


def _take_off(
    module: nn.Module, hook: Any, made: list[tuple[Tensor, Tensor, nn.Parameter]]
) -> None:
    """Put the masked parameter in the place of the original, its mask and their product."""
    name = hook._tensor_name
    original, mask = module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
    if original is None or mask is None:
        raise CaptureError(f"'{name}' of {type(module).__name__} has lost its mask or its weight.")
    same = (p for known, m, p in made if known is original and torch.equal(m, mask))
    parameter = next(same, None)
    if parameter is None:
        with torch.no_grad():
            product = hook.apply_mask(module).detach().clone()
        parameter = nn.Parameter(product, original.requires_grad)
        made.append((original, mask, parameter))
    del module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
    module.__dict__.pop(name, None)
    setattr(module, name, parameter)
