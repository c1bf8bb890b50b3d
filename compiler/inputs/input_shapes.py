"""Example inputs from the user's own words: `3x224x224`, `ids:2x128`."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import SourceError

_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<shape>\d+(?:x\d+)*)")
# A part of a name, and what the integers under it are; the first that occurs in the name holds.
_MOST = 2**31  # values of one input
_INTEGERS = ("mask", "position", "type", "ids", "tokens")


@dataclass(frozen=True)
class InputShape:
    """One input as the user gave it. A named shape is whole; to an unnamed one a batch is added."""

    name: str | None
    shape: tuple[int, ...]


def parse_input(text: str) -> InputShape:
    """Read `SHAPE` or `NAME:SHAPE`, sizes joined by `x`. Raises SourceError on any other form."""
    match = _FORM.fullmatch(text.strip())
    sizes = tuple(int(s) for s in match["shape"].split("x")) if match else ()
    if match is None or 0 in sizes:
        raise SourceError(
            f"--input {text!r} is not a shape: write one sample's sizes (3x224x224), "
            "or a name and the whole shape (ids:2x128)."
        )
    return InputShape(match["name"], sizes)


def inputs_from_shapes(
    model: nn.Module, spec: Sequence[str], batch: int = 2
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs of the given shapes, the same on every call.

    An unnamed shape goes by position: floats, or integers where the model begins with an
    embedding. A named one goes to the parameter of `forward` it names (`ids` finds `input_ids`
    too); ids and tokens are integers below the vocabulary's size, masks are ones. Raises
    SourceError when no parameter fits.
    """
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for text in spec:
        item = parse_input(text)
        if item.name is None:
            kind = "ids" if begins_with_embedding(model) else None
            args.append(_draw(model, kind, (batch, *item.shape), generator))
            continue
        kind = next((k for k in _INTEGERS if k in item.name.lower()), None)
        value = _draw(model, kind, item.shape, generator)
        parameter = _parameter(model, item.name)
        if parameter is None:
            args.append(value)
        else:
            kwargs[parameter] = value
    return tuple(args), kwargs


def begins_with_embedding(model: nn.Module) -> bool:
    """Whether the first module that holds parameters of its own is an embedding."""
    holders = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return isinstance(next(holders, None), nn.Embedding)


def vocabulary_size(model: nn.Module) -> int:
    """How many ids the model knows: by its configuration, else by its first embedding, else 2."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int) and size > 0:
        return size
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    return embedding.num_embeddings if embedding is not None else 2


def placed_like(model: nn.Module, value: Tensor) -> Tensor:
    """`value` on the model's device, and floats in its floating-point type."""
    parameters = list(model.parameters())
    floats = [p for p in parameters if p.is_floating_point()]
    if floats and value.is_floating_point():
        value = value.to(floats[0].dtype)
    return value.to(parameters[0].device) if parameters else value


def _draw(
    model: nn.Module, kind: str | None, shape: tuple[int, ...], generator: Generator
) -> Tensor:
    if math.prod(shape) > _MOST:
        raise SourceError(
            f"--input of {'x'.join(map(str, shape))} is more than memory holds: give the sizes of "
            "one sample."
        )
    if kind is None:
        value = torch.randn(shape, generator=generator)
    elif kind == "mask":
        value = torch.ones(shape, dtype=torch.long)
    elif kind == "position":
        value = torch.arange(shape[-1]).expand(shape).clone()
    elif kind == "type":
        value = torch.zeros(shape, dtype=torch.long)
    else:
        value = torch.randint(0, vocabulary_size(model), shape, generator=generator)
    return placed_like(model, value)


def _parameter(model: nn.Module, name: str) -> str | None:
    """The parameter of forward that `name` means; None for a name that only says what it holds."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if name in named:
        return name
    words = set(name.lower().split("_"))
    similar = next((p for p in named if words <= set(p.lower().split("_"))), None)
    if similar is not None:
        return similar
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return name
    if name.lower() in _INTEGERS:
        return None
    raise SourceError(f"forward has no input {name!r}: name one of {', '.join(named)}.")
