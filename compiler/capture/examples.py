"""Example inputs: batches of one are widened before export, fresh inputs are drawn like them."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .batch import batch_size, resize_batch


def widen(args: tuple[Any, ...], kwargs: dict[str, Any], to: int = 3) -> tuple[Any, Any]:
    """Repeat inputs of batch 1 to `to` rows, so that export does not fix the batch at 1.

    Every tensor input with axis 0 of size 1 is repeated, when that is the common batch.
    """
    if batch_size(args, kwargs) != 1:
        return args, kwargs
    return resize_batch(args, kwargs, to)


def distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The inputs with no tensor object in two places: export would make one input of them."""
    seen: set[int] = set()

    def once(x: Any) -> Any:
        if isinstance(x, Tensor) and id(x) in seen:
            return x.clone()
        seen.add(id(x))
        return x

    return pytree.tree_map(once, (args, kwargs))


def fresh_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """New inputs like the example: integers and booleans resampled from its own values (per
    tensor), floats drawn by its mean and spread. Deterministic under `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.numel() == 0:
            return x
        if x.is_floating_point():
            mean, spread = x.float().mean(), x.float().std(correction=0)
            if x.numel() == 1 or not torch.isfinite(spread):
                return x
            noise = torch.randn(x.shape, generator=generator)
            return (noise.to(x.device) * spread + mean).to(x.dtype)
        if x.is_complex():
            return x
        pick = torch.randint(x.numel(), (x.numel(),), generator=generator).to(x.device)
        return x.reshape(-1)[pick].reshape(x.shape)

    return pytree.tree_map(draw, (args, kwargs))
