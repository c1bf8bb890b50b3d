"""A copy of a model that holds the model's own tensors."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def computed(model: nn.Module) -> dict[int, Tensor]:
    """Copies, by id, of what modules hold that autograd made (the weight of weight_norm's hook,
    made again by each forward): deepcopy refuses those."""
    held = (value for m in model.modules() for value in vars(m).values())
    return {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}


def copy_sharing(model: nn.Module) -> nn.Module:
    """A copy with modules, hooks and attributes of its own, whose parameters and buffers are the
    model's. Raises whatever the objects that a model holds raise when they are copied."""
    memo: dict[int, Any] = dict(computed(model))
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)
