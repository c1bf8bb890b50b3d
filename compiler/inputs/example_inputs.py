"""Example inputs for a model: of shapes the user gave, or from the model's own configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.cache import without_cache
from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call
from ..capture.untouched import copy_on_write, untouched
from ..cause import cause
from ..errors import SourceError
from .input_shapes import inputs_from_shapes, placed_like
from .synthetic_inputs import MAKERS, SIGNALS

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_REMEDY = "give --input NAME:SHAPE for each input, or a factory that returns (model, inputs)"


def example_inputs(
    model: nn.Module, spec: Sequence[str] | None = None, batch: int = 2
) -> Arguments:
    """Arguments the model runs on, the same on every call: `model(*args, **kwargs)`.

    With `spec`, inputs of those shapes (see `inputs_from_shapes`). Without, a transformers model's
    are made from its configuration: token ids and mask (batch, 120), images (batch, channels,
    height, width), sound, whatever its `forward` asks for; the cache is off. The first candidate
    that runs is taken. Raises SourceError when none does, or when there is nothing to go by.
    """
    if spec:
        args, kwargs = inputs_from_shapes(model, spec, batch)
        _run(model, args, kwargs)
        return args, kwargs
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise SourceError(
            f"{type(model).__name__} does not say what it takes: give --input 3x224x224 or "
            "--input ids:2x128, or a factory that returns (model, inputs)."
        )
    failure: SourceError | None = None
    for kwargs in _candidates(model, batch):
        try:
            _run(model, (), kwargs)
        except SourceError as error:
            failure = failure or error
        else:
            return (), kwargs
    raise failure or SourceError(
        f"no example inputs are known for {type(model).__name__}: {_REMEDY}."
    )


def describe(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Arguments in a line: `float32 [2, 3, 8, 8], input_ids int64 [2, 120]`."""
    named = [("", a) for a in args] + [(f"{k} ", v) for k, v in kwargs.items()]
    tensors = [(name, v) for name, v in named if isinstance(v, Tensor)]
    return ", ".join(
        f"{name}{str(v.dtype).removeprefix('torch.')} {list(v.shape)}" for name, v in tensors
    )


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One forward pass in eval mode: a wrong shape is better met here than inside a capture."""
    try:
        args, kwargs = copied_call(args, kwargs)
        with torch.no_grad(), untouched(model), eval_mode(model), copy_on_write(model):
            model(*args, **kwargs)
    except Exception as error:
        raise SourceError(
            f"{type(model).__name__} does not run on {describe(args, kwargs)} "
            f"({cause(error)}): {_REMEDY}."
        ) from error


def _candidates(model: nn.Module, batch: int) -> Iterator[dict[str, Any]]:
    """From the least that could do to everything there is a maker for."""
    parameters = inspect.signature(model.forward).parameters
    named = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    required = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    if not set(required) <= set(MAKERS):
        return
    least = {str(getattr(model, "main_input_name", "")), *required}
    if "return_loss" in named:  # contrastive: text beside images or sound
        least |= {"input_ids", *SIGNALS}
    if getattr(model.config, "is_encoder_decoder", False):
        least.add("decoder_input_ids")
    tried: list[list[str]] = []
    # Some make what the decoder reads themselves, and need it to be as long as the text.
    for wanted in (least, {*least, *SIGNALS}, set(MAKERS), least - {"decoder_input_ids"}):
        names = [n for n in MAKERS if n in wanted and n in named]
        if names and names not in tried:
            tried.append(names)
            yield _make(model, names, named, batch)


def _make(
    model: nn.Module, names: Sequence[str], named: Sequence[str], batch: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {}
    for name in names:
        made[name] = placed_like(model, MAKERS[name](model.config, batch, generator))
        if name == "input_ids" and "attention_mask" in named:
            made["attention_mask"] = torch.ones_like(made[name])
    return {**made, **without_cache(model)}
