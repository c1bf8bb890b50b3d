"""Example inputs: batches of one are widened before export, fresh inputs are drawn like them."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .batch import batch_size, resize_batch
from .draws import drawn


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


def copied_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The same call with containers and tensors of its own, for a forward that writes to them."""

    def copy(x: Any) -> Any:
        return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return pytree.tree_map(copy, (args, kwargs))


def fresh_containers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The same tensors in lists and dicts of the call's own: a forward may write to those."""
    return pytree.tree_map(lambda x: x, (args, kwargs))


def fresh_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """New inputs like the example: its samples in another order, the same one for every input (a
    mask stays with its tokens, a length with its sequence), with values redrawn as `drawn` says.
    Deterministic under `seed`."""
    generator = torch.Generator().manual_seed(seed)
    batch = batch_size(args, kwargs)

    def draw(x: Any) -> Any:
        if not isinstance(x, Tensor) or (x.dim() == 1 and x.shape[0] == batch):
            return x  # a size, a time, a label: one of the example's own
        return drawn(x, generator)

    return pytree.tree_map(draw, reordered_inputs(args, kwargs, seed))


def reordered_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """The example's samples in another order, the same one for every input."""
    batch = batch_size(args, kwargs)
    order = torch.randperm(batch or 0, generator=torch.Generator().manual_seed(seed))

    def reorder(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != batch or x.is_meta:
            return x
        return x.index_select(0, order.to(x.device))

    return pytree.tree_map(reorder, (args, kwargs))
