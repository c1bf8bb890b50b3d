"""A model is after a block what it was before, whatever ran in it and however it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .object_state import ObjectState, memory
from .process_state import same_process_state


@contextmanager
def untouched(*models: nn.Module, shared: bool = True) -> Iterator[None]:
    """Within the block anything may be done with the models; afterwards their attributes, what
    those hold, their tensors, gradients, hooks and modes are as before, and so are random states
    and torch's global flags.

    `shared`: the attributes of their classes too, and the globals beside those; False where the
    block runs more than the models, whose own records those may be. Weights are not copied: writes
    to them within the block are restored only under `copy_on_write`.
    """
    with same_process_state():
        state = ObjectState(models, shared)
        try:
            yield
        finally:
            with torch.no_grad():
                state.restore()


@contextmanager
def copy_on_write(*models: nn.Module) -> Iterator[None]:
    """Parameters that ops of the block write to (an embedding with `max_norm`) get their values
    back; only those are copied."""
    mode = _CopyOnWrite(t for model in models for t in model.parameters() if not t.is_meta)
    try:
        with mode:
            yield
    finally:
        mode.restore()


class _CopyOnWrite(TorchDispatchMode):
    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self.protected = {memory(t): t for t in tensors}
        self.copies: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            for argument in func._schema.arguments:
                alias = argument.alias_info
                value = {**given, **kwargs}.get(argument.name)
                if alias is not None and alias.is_write and isinstance(value, Tensor):
                    self._save(memory(value))
        return func(*args, **kwargs)

    def _save(self, place: int) -> None:
        if place in self.protected and place not in self.copies:
            self.copies[place] = self.protected[place].untyped_storage().clone()

    def restore(self) -> None:
        for place, copy in self.copies.items():
            self.protected[place].untyped_storage().copy_(copy)
