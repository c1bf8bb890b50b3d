"""Small nets, one per structure, with the dimensions that must be found prunable in each.

A dimension is written `kind size`, followed by `~` when it is norm-coupled. Sizes differ from each
other where they may, so that no test passes because two numbers happen to be equal.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunec.compiler import capture
from prunec.compiler.inference.graph import Graph

Build = Callable[[], nn.Module]
Forward = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Structure:
    """One net of the table. `finds`: the prunable dimensions, sorted."""

    name: str
    build: Build
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    finds: tuple[str, ...]

    def graph(self) -> Graph:
        """The captured net; captured once."""
        return captured(self.name)


STRUCTURES: dict[str, Structure] = {}


def structure(*finds: str, args: tuple[Any, ...] = (), **kwargs: Any) -> Callable[[Build], Build]:
    """Add a net to the table, under its function's name; `args`, `kwargs`: its example inputs."""

    def register(build: Build) -> Build:
        STRUCTURES[build.__name__] = Structure(
            build.__name__, build, args, kwargs, tuple(sorted(finds))
        )
        return build

    return register


@functools.cache
def captured(name: str) -> Graph:
    entry = STRUCTURES[name]
    torch.manual_seed(0)
    model = entry.build().eval()
    lively(model)
    return capture(model, entry.args, kwargs=entry.kwargs)


def lively(model: nn.Module) -> None:
    """Biases, norm parameters and running statistics off their initial 0 and 1."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() < 2:
                p.add_(0.3 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2)


def found(graph: Graph) -> tuple[str, ...]:
    """The prunable dimensions of a graph, as the table writes them."""
    return tuple(
        sorted(f"{d.kind} {d.size}{'' if d.exact else '~'}" for d in graph.prunable.values())
    )


def module(forward: Forward, **parts: Any) -> nn.Module:
    """A module of these parts: sub-modules, parameters, buffers (plain tensors) and values."""
    made = type(forward.__qualname__.split(".")[0], (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(sum(shape)))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(floats(*shape) * shape[-1] ** -0.5)


IMAGE = floats(3, 4, 6, 6)
TOKENS = floats(3, 7, 8)
IDS = ids(3, 7, below=11)


def conv(a: int, b: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2, **options)
