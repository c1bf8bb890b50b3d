"""Batch norms measured again on the smaller model: exact averages, in order, never worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import IMAGES, small_cnn
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Pass, Result
from prunec.compiler.errors import PlanError
from prunec.passes import recalibrate_batch_norm as module

BATCHES = list(torch.randn(5, 6, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 + 1)


class TwoNorms(nn.Module):
    """Two batch norms in a row, in training statistics that do not fit any data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.second, self.behind = nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.behind(self.features(x))).mean((2, 3)))


class OneNorm(nn.Module):
    """One batch norm that is called twice: on two inputs, or on its own result."""

    def __init__(self, follow: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.norm, self.follow = nn.BatchNorm1d(16), follow

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        z = self.norm(torch.relu(y)) if self.follow else self.norm(self.first(3 * x))
        return self.second(torch.relu(y) - torch.relu(z))


def cut(model: nn.Module, batches: list[Tensor], *steps: Pass) -> Result:
    """Half of every width, and then these passes."""
    graph = compiler.capture(model, (batches[0],))
    first = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    return compiler.PassManager([*first, *steps]).run(graph, batches)


def accept(monkeypatch: pytest.MonkeyPatch, before: float = 2.0, after: float = 1.0) -> None:
    errors = iter((before, after) * 9)
    monkeypatch.setattr(module, "output_error", lambda *_: next(errors))


def test_statistics_are_those_of_all_data_each_norm_on_the_ones_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept(monkeypatch)
    torch.manual_seed(0)
    result = cut(TwoNorms().eval(), BATCHES, passes.RecalibrateBatchNorm())
    small, x = result.model, torch.cat(BATCHES)
    for norm, values in ((small.norm, small.first(x)), (small.behind, small.features(x))):
        rows = values.movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(norm.running_mean, rows.mean(0))
        torch.testing.assert_close(norm.running_var, rows.var(0))
        assert int(norm.num_batches_tracked) == 0


def test_leaf_modules_of_the_graph_hold_the_new_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch)
    result = cut(small_cnn(), BATCHES, passes.RecalibrateBatchNorm())
    assert isinstance(result.model, type(small_cnn()))
    assert result.graph_module is not None
    leaf = result.graph_module.get_submodule("norm")
    assert isinstance(leaf, nn.BatchNorm2d)
    assert leaf.running_mean is result.model.norm.running_mean
    torch.testing.assert_close(result.graph_module(IMAGES), result.model(IMAGES))
    raw = cut(small_cnn(), BATCHES)
    assert not torch.allclose(raw.model.norm.running_mean, leaf.running_mean)


def test_a_norm_that_is_read_twice_is_measured_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch)
    torch.manual_seed(0)
    batches = list(torch.randn(4, 10, 8))
    small = cut(OneNorm(follow=False).eval(), batches, passes.RecalibrateBatchNorm()).model
    x = torch.cat(batches)
    rows = small.first(torch.cat([x, 3 * x]))
    torch.testing.assert_close(small.norm.running_mean, rows.mean(0))
    torch.testing.assert_close(small.norm.running_var, rows.var(0))


def test_a_norm_that_reads_its_own_result_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    accept(monkeypatch)
    result = cut(
        OneNorm(follow=True).eval(), list(torch.randn(4, 10, 8)), passes.RecalibrateBatchNorm()
    )
    assert torch.equal(result.model.norm.running_mean, torch.zeros(8))
    reasons = result.report.passes[-1].details["not treated"].values()
    assert all("follow one another" in reason for reason in reasons)
    assert len(reasons) == 2


def test_statistics_come_back_where_the_outputs_get_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = cut(small_cnn(), BATCHES)
    accept(monkeypatch, before=1.0, after=2.0)
    result = cut(small_cnn(), BATCHES, passes.RecalibrateBatchNorm())
    assert torch.equal(result.model.norm.running_mean, raw.model.norm.running_mean)
    assert torch.equal(result.model.norm.running_var, raw.model.norm.running_var)
    assert "undone" in result.report.passes[-1].summary


def test_it_brings_a_shifted_cut_closer_to_the_original() -> None:
    torch.manual_seed(0)
    model = TwoNorms().eval()
    model.train()
    for x in BATCHES * 20:
        model(x)
    result = cut(model.eval(), BATCHES, passes.RecalibrateBatchNorm())
    before, after = result.report.passes[-1].details["output error"]
    assert after < before


def test_a_model_without_batch_norms_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    report = cut(model, [torch.randn(4, 8)], passes.RecalibrateBatchNorm()).report
    assert report.passes[-1].summary == "no batch norm with running statistics"


@pytest.mark.parametrize("options", [{}, {"memory": 0}])
def test_it_is_refused_without_data_and_without_memory(options: dict[str, Any]) -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    with pytest.raises(PlanError, match=r"recalibrate-batch-norm needs calibration|memory=0"):
        compiler.PassManager([*steps, passes.RecalibrateBatchNorm(**options)]).run(graph)
