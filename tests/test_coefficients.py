"""The search for coefficients of losses: what it judges by is what it ends with."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from prunec import compiler, passes
from prunec.compiler.errors import PlanError
from prunec.passes.allocation.allocation import Allocation
from prunec.passes.allocation.coefficients import CoefficientSearch


def solve(coefficients: Mapping[str, float]) -> Allocation:
    """Of two names the one with the larger coefficient keeps its width."""
    a, b = coefficients["a"], coefficients["b"]
    return Allocation({"a": 8, "b": 4} if a >= b else {"a": 4, "b": 8})


def test_it_ends_with_the_allocation_of_least_error() -> None:
    calls: list[Allocation] = []

    def error(tried: Allocation) -> float:
        calls.append(tried)
        return {8: 0.1, 4: 0.9}[tried.widths["b"]]

    found = CoefficientSearch(error, trials=20).run(["a", "b"], solve)
    assert solve(found).widths == {"a": 4, "b": 8}
    assert len(calls) == 2  # an allocation is judged once


def test_without_a_better_one_nothing_changes() -> None:
    search = CoefficientSearch(lambda widths: float("nan"), trials=5)
    assert search.run(["a", "b"], solve) == {"a": 1.0, "b": 1.0}
    assert CoefficientSearch(lambda w: 0.0, 0).run(["a"], lambda c: None) == {"a": 1.0}


class Uneven(nn.Module):
    """Two branches of one shape, of which the second hardly reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(8, 32)
        self.c, self.d = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x))) + 1e-3 * self.d(torch.relu(self.b(x)))


def test_the_branch_that_matters_keeps_more() -> None:
    torch.manual_seed(0)
    model, data = Uneven(), [torch.randn(64, 8) for _ in range(2)]
    graph = compiler.capture(model, (data[0],))
    steps = [
        passes.SecondOrderScore(progress=False),
        passes.AllocateWidths(compiler.Target(params=0.5), weigh=False, search=30),
        passes.PruneChannels(),
        passes.SparseToDense(),
    ]
    small = compiler.PassManager(steps).run(graph, data).model
    assert small.a.out_features > small.b.out_features + 8


def test_it_needs_calibration_data() -> None:
    graph = compiler.capture(Uneven(), (torch.randn(4, 8),))
    steps = [passes.MagnitudeScore(), passes.AllocateWidths(compiler.Target(params=0.5), search=3)]
    with pytest.raises(PlanError, match="calibration data"):
        compiler.PassManager(steps).run(graph)
    with pytest.raises(PlanError, match="number of trials"):
        passes.AllocateWidths(compiler.Target(params=0.5), search=-1)
