"""The batch of a call: the size axis 0 of its tensors share, and the same call at another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..errors import MeasureError
from ..ir.program import is_symbolic

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The length of axis 0 that most tensors of the call share (the first one's on a tie); None
    when no tensor has axes."""
    sizes = [
        leaf.shape[0]
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and leaf.dim() > 0
    ]
    return max(sizes, key=sizes.count) if sizes else None


def resize_batch(args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> Arguments:
    """The same call at another batch size, by repeating or cutting the examples it has.

    Only tensors whose axis 0 equals the example batch change; everything else is passed on.

    Raises:
        MeasureError: `batch` is below 1, or the call has no batch (no tensor, or an empty one).
    """
    have = batch_size(args, kwargs)
    if batch < 1:
        raise MeasureError(f"A batch of {batch} cannot be run: ask for 1 or more.")
    if not have:
        raise MeasureError("The example inputs hold no tensor with a batch axis to resize.")

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != have:
            return leaf
        return leaf.index_select(0, torch.arange(batch, device=leaf.device) % have)

    return pytree.tree_map(resize, (args, kwargs))


def free_batch(fakes: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `resize_batch` gives a call that runs, as far as shapes tell.

    `fakes`: the flat inputs as they were captured. Their batch must be dynamic, be no other axis of
    an input (keys that come before their batch), and no integers may number its entries (the edges
    of a graph, in rows of their own).
    """
    have = batch_size(args, kwargs)
    pairs = [
        (real, fake.shape)
        for real, fake in zip(pytree.tree_leaves((args, kwargs)), fakes, strict=False)
        if isinstance(real, Tensor) and real.dim() > 0 and isinstance(fake, Tensor)
    ]
    batch = [shape[0] for real, shape in pairs if real.shape[0] == have]
    if not have or not batch or not all(is_symbolic(size) for size in batch):
        return False
    names = {str(size) for size in batch}
    return not any(
        any(str(size) in names for size in shape[1:])
        or (real.shape[0] != have and _may_number(real, have))
        for real, shape in pairs
    )


def _may_number(tensor: Tensor, size: int) -> bool:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return False
    if tensor.is_meta:
        return True
    return bool((tensor >= 0).all() & (tensor < size).all())
