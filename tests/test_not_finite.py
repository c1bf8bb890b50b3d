"""Values that are not finite: named at once, with the batch or the tensor, and no pass hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from repair_cases import Chain, data, seeded
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.errors import NonFiniteError, PlanError
from prunec.compiler.pass_class import Pass
from prunec.passes.sensitivity.elimination import Problem, eliminate

SCORES: list[Callable[[], Pass]] = [
    passes.SecondOrderScore,
    passes.ActivationScore,
    passes.TaylorScore,
]
CUT: list[Pass] = [
    passes.MagnitudeScore(),
    passes.PruneChannels(ratio=0.5),
    passes.SparseToDense(),
]


def net() -> Chain:
    norm = nn.BatchNorm1d(16)
    return Chain(nn.Sequential(nn.Linear(6, 16), norm), nn.Linear(16, 5))


def broken(value: float, batch: int = 2) -> list[Tensor]:
    batches = [x.clone() for x in data(20, 6)]
    batches[batch][3, 1] = value
    return batches


def run(model: nn.Module, steps: list[Pass], batches: list[Tensor]) -> Any:
    graph = compiler.capture(model, (data(20, 6)[0],))
    return compiler.PassManager(steps).run(graph, batches)


def ending(step: Callable[..., Pass], batches: list[Tensor]) -> list[Pass]:
    """A pipeline of which only this pass reads the data."""
    made = step(batches)
    return [made, *CUT[1:]] if "scores" in made.provides else [*CUT, made]


DATA_PASSES = [*SCORES, passes.Reconstruct, passes.RecalibrateBatchNorm]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("step", DATA_PASSES)
def test_a_batch_that_is_not_finite_is_named(step: Callable[..., Pass], value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"calibration batch 3 has 1 .* in the input 'x'"):
        run(seeded(net), ending(step, broken(value)), [])


@pytest.mark.parametrize("step", SCORES)
def test_weights_that_are_not_finite_are_named(step: Callable[..., Pass]) -> None:
    model = seeded(net)
    with torch.no_grad():
        model.second.weight[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 NaN of 80 values in 'second.weight'"):
        run(model, ending(step, data(20, 6)), data(20, 6))


def test_magnitudes_of_weights_that_are_not_finite_are_refused() -> None:
    model = seeded(net)
    with torch.no_grad():
        model.second.weight[1, 2] = torch.inf
    with pytest.raises(NonFiniteError, match=r"1 infinite of 80 values in 'second.weight'"):
        run(model, CUT, [])


class Overflowing(nn.Module):
    """A layer inside that leaves the numbers on one batch, which itself is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.exp(self.first(x))))


@pytest.mark.parametrize("step", DATA_PASSES[:4])
def test_the_layer_and_the_batch_that_overflow_are_named(step: Callable[..., Pass]) -> None:
    with pytest.raises(PlanError, match="is not finite on calibration batch 2"):
        run(seeded(Overflowing), ending(step, broken(1e5)), [])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.softmax(y @ y.mT + mask, -1) @ y


def test_a_mask_of_minus_infinity_is_data_like_any_other() -> None:
    mask = torch.zeros(5, 5, dtype=torch.float64).masked_fill(
        torch.ones(5, 5).triu(1).bool(), -torch.inf
    )
    calls = [(x, mask) for x in data(20, 5, 6)]
    graph = compiler.capture(seeded(Masked), calls[0])
    steps = [passes.SecondOrderScore(), *CUT[1:], passes.Reconstruct()]
    result = compiler.PassManager(steps).run(graph, calls)
    assert result.report.passes[-1].details["output error"][1] < 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_elimination_of_moments_that_are_not_finite_ends_with_an_error(value: float) -> None:
    gram, weight = torch.eye(4, dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64)
    gram[1, 1] = value
    problem = Problem(gram, weight, torch.arange(4), torch.full((2,), -1))
    with pytest.raises(PlanError, match="NaN or an infinity"):
        eliminate([problem], torch.zeros(4, dtype=torch.float64), 1e-2, 1)


def test_elimination_without_a_ridge_ends_on_singular_moments() -> None:
    gram = torch.ones(4, 4, dtype=torch.float64)
    problem = Problem(gram, gram[:, :2] / 8, torch.arange(4), torch.full((2,), -1))
    order, _ = eliminate([problem], torch.zeros(4, dtype=torch.float64), 0.0, 1)
    assert len(order) == 3
