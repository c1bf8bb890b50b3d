"""The sequence of a call: the axis that its tokens share, and the same call at another length."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from .batch import Arguments, batch_size


def sequence_lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """The lengths of axis 1 of the call's integer matrices (token ids, masks), in order, each once;
    lengths below 2 say nothing and are left out."""
    batch = batch_size(args, kwargs)
    found = [
        leaf.shape[1]
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor)
        and leaf.dim() == 2
        and leaf.shape[0] == batch
        and not leaf.is_floating_point()
        and not leaf.is_complex()
        and leaf.shape[1] > 1
    ]
    return list(dict.fromkeys(found))


def shorten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The same call with the first three quarters of every sequence, at least one token less."""
    batch, lengths = batch_size(args, kwargs), sequence_lengths(args, kwargs)

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2 or leaf.shape[0] != batch:
            return leaf
        length = leaf.shape[1]
        return leaf[:, : length * 3 // 4] if length in lengths else leaf

    return pytree.tree_map(cut, (args, kwargs))
