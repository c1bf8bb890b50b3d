"""Small compiles that several test files read, without timings unless they ask for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tiny_models import (
    IDS,
    IMAGES,
    small_cnn,
    tiny_bert,
)
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Result, Target


def compress(model: nn.Module | None = None, args: Any = IMAGES, **options: Any) -> Result:
    """compile to half the width, without timings, unless the options say otherwise."""
    options = {"target": Target(width=0.5), "measure": False} | options
    return compiler.compile(model if model is not None else small_cnn(), args, **options)


def compress_tokens(model: nn.Module, **options: Any) -> Result:
    return compress(model, None, kwargs={"input_ids": IDS}, **options)


@functools.cache
def halved() -> Result:
    """The CNN at half its width, in eval mode; shared by tests that only read it."""
    return compress()


@functools.cache
def small_bert(share: float) -> Result:
    """The BERT at a share of its parameters; shared by tests that only read it."""
    return compress_tokens(tiny_bert(), target=Target(params=share))


def images(count: int = 3) -> list[Tensor]:
    return list(torch.randn(count, 2, 3, 8, 8))
