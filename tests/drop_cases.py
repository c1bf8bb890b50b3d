"""Pipelines that drop branches, and what is asked of their results."""

from __future__ import annotations

from typing import Any

import torch
from nets_of_depth import PICTURES
from torch import Tensor, nn

from prunec.compiler import PassManager, Result, capture
from prunec.compiler.ir.drop import Drop
from prunec.compiler.rewrite.depth import without_branches
from prunec.passes import DropLayers, SparseToDense


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(count, *shape, generator=generator))


def dropped(model: nn.Module, args: Any, data: Any = None, **options: Any) -> Result:
    steps = [DropLayers(**options), SparseToDense()]
    return PassManager(steps).run(capture(model, args), data)


def silenced(model: nn.Module, *names: str) -> nn.Module:
    """The model with zeros in the named layers."""
    with torch.no_grad():
        for name in names:
            for p in model.get_submodule(name).parameters():
                p.zero_()
    return model


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def capture_and_drop(model: nn.Module, drops: list[Drop]) -> None:
    without_branches(capture(model, (PICTURES,)), drops)


def squared_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().square().sum() / expected.double().square().sum())
