"""Buffers that a forward makes. torch.export takes a buffer that was assigned for an input, counted
by its place among the buffers that there were before, and has the graph write to another tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def late_buffers_as_attributes(model: nn.Module) -> None:
    """Make what forward will put into empty or missing buffers plain attributes; `untouched` around
    it undoes that."""
    for module in model.modules():
        for name in [name for name, value in module._buffers.items() if value is None]:
            del module._buffers[name]
            module.__dict__[name] = None
        if type(module).register_buffer is nn.Module.register_buffer:
            module.__dict__["register_buffer"] = _registering(module)


def _registering(module: nn.Module) -> Any:
    def register_buffer(name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        if name in module._buffers:
            nn.Module.register_buffer(module, name, tensor, persistent)
        else:
            module.__dict__[name] = tensor

    return register_buffer
