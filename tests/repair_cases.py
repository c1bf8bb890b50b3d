"""Nets to repair, and the pipelines that cut and repair them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Result

EXACT = 1e-12  # a ridge that is no more than rounding


class Chain(nn.Module):
    """A layer whose outputs are cut, an activation, and the layer that reads them."""

    def __init__(
        self, first: nn.Module, second: nn.Module, behind: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.behind = behind if behind is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.second(torch.relu(self.first(x))))


class Product(nn.Module):
    """A matrix product with a weight, and no class that could hold a bias."""

    def __init__(self, flipped: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 16) if flipped else torch.randn(16, 5))
        self.flipped = flipped

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.t() if self.flipped else self.weight)


class Conv1D(nn.Module):
    """What GPT-2 calls a layer: addmm with a weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 16), self.weight).view(*x.shape[:-1], 5)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


def repaired(
    model: nn.Module, batches: Sequence[Any], *, ratio: float = 0.5, **options: Any
) -> tuple[Result, Result]:
    """The raw cut of every width, and the same cut repaired."""
    options = {"ridge": EXACT, "growth": 1e9} | options
    graph = compiler.capture(model, (batches[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=ratio), passes.SparseToDense()]
    raw = compiler.PassManager(cut).run(graph, batches)
    return raw, compiler.PassManager([*cut, passes.Reconstruct(**options)]).run(graph, batches)


def details(result: Result) -> dict[str, Any]:
    return result.report.passes[-1].details


def data(*shape: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(count, *shape, dtype=torch.float64, generator=generator))


def best(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [D, O] and bias [O] of least squares, by torch."""
    rows = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    solution = torch.linalg.lstsq(rows, target).solution
    return solution[:-1], solution[-1]
