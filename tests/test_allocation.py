"""AllocateWidths: floors, equal repeated layers, methods, and the loop that meets a speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compiled import compress
from tiny_models import IDS, IMAGES, comparison, parameters, small_cnn, timed_by_size
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PlanError, TargetError
from prunec.passes.allocation.choice import candidates, loss_curve


def deep_bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def bert_state() -> Compilation:
    """A BERT of three layers whose first layer's hidden units cost nothing to lose."""
    state = Compilation(compiler.capture(deep_bert(), kwargs={"input_ids": IDS}))
    passes.MagnitudeScore().run(state)
    state.errors = {}
    for name, d in state.graph.prunable.items():
        if d.exact:
            share = 1 - torch.arange(d.size + 1, dtype=torch.float64) / d.size
            first = name.startswith("bert.encoder.layer.0.intermediate")
            state.errors[name] = share**2 * (1e-6 if first else 0.5)
    return state


def allocated(state: Compilation, target: Target, **options: Any) -> dict[str, int]:
    passes.AllocateWidths(target, **options).run(state)
    assert state.widths is not None
    return state.widths


def hidden(widths: dict[str, int]) -> list[int]:
    return [w for name, w in widths.items() if ".intermediate." in name]


def test_the_knapsack_takes_what_costs_least(bert_state: Compilation) -> None:
    first, *others = hidden(allocated(bert_state, Target(macs=0.8)))
    assert first <= 4
    assert min(others) > 32
    assert bert_state.aim is not None
    assert 0.75 < (bert_state.aim.predicted or 0) <= 0.8
    equal = hidden(allocated(bert_state, Target(macs=0.8), method="share"))
    assert len(set(equal)) == 1


def test_uniform_keeps_repeated_layers_equal(bert_state: Compilation) -> None:
    widths = allocated(bert_state, Target(macs=0.8), uniform=True)
    assert len(set(hidden(widths))) == 1
    heads = {w for name, w in widths.items() if name.endswith(":head")}
    assert len(heads) == 1


def test_floors_hold_by_pattern(bert_state: Compilation) -> None:
    floors = {"*layer.0.intermediate*": 0.75}
    assert hidden(allocated(bert_state, Target(macs=0.8), floors=floors))[0] >= 48
    share = allocated(bert_state, Target(macs=0.6), floors=0.5, method="share")
    assert min(hidden(share)) >= 32
    with pytest.raises(TargetError, match="every dimension at its floor"):
        allocated(bert_state, Target(macs=0.3), floors=0.9)
    with pytest.raises(PlanError, match="fits no prunable dimension"):
        allocated(bert_state, Target(macs=0.8), floors={"nothing*": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "greedy"}, "knapsack, share"), ({"floors": 0.0}, "a floor is the share kept")],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        passes.AllocateWidths(Target(macs=0.5), **options)


def test_best_effort_gives_the_smallest_with_a_note() -> None:
    options = {"allocate-widths": {"best_effort": True, "floors": 0.5}}
    result = compress(target=Target(params=0.01), options=options)
    assert any("params=0.01 cannot be met" in note for note in result.report.notes)
    assert result.model.first.out_channels == 8  # type: ignore[union-attr]


def test_losses_fall_with_width_and_end_at_nothing() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    dimension = next(iter(graph.prunable.values()))
    scores = torch.arange(dimension.size, dtype=torch.float64)
    curve = loss_curve(dimension, scores, None)
    assert curve[-1] == curve[-2] == 0  # the lowest has no importance
    assert (np.diff(curve) <= 0).all()
    two_readers = torch.linspace(2, 0, dimension.size + 1)
    half = loss_curve(dimension, scores, two_readers)[dimension.size // 2]
    assert half == pytest.approx(-2 * np.log(0.5))


def test_candidates_are_multiples_with_floor_size_and_free_width() -> None:
    curve = np.where(np.arange(3073) < 2001, 1.0, 0.0)
    widths = candidates(3072, 150, 1, curve)
    assert {150, 2001, 3072} < set(widths)
    assert all(w % 64 == 0 for w in widths if w not in (150, 2001, 3072))
    assert candidates(12, 1, 1, np.ones(13)) == tuple(range(1, 13))
    assert set(candidates(100, 8, 8, np.ones(101))) - {100} == set(range(8, 97, 8)) & set(
        candidates(100, 8, 8, np.ones(101))
    )


@pytest.mark.usefixtures("fake_timing")
def test_asked_predicted_and_measured_are_in_the_report() -> None:
    model = small_cnn()
    result = compress(model, target=Target(speedup=2.0), measure=True)
    aim = result.report.aim
    assert aim is not None
    assert aim.asked == "speedup=2"
    assert aim.measured == pytest.approx(parameters(model) / parameters(result.model))
    assert aim.predicted == pytest.approx(2.0, rel=0.1)
    assert "predicted" in str(result.report)
    details = next(p for p in result.report.passes if p.name == "allocate-widths").details
    assert details["rounds"][-1]["measured"] == details["measured"]
    assert len(details["rounds"]) <= 6


@pytest.mark.usefixtures("fake_timing")
def test_a_machine_that_is_not_steady_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    def shaky(*args: Any, **options: Any) -> Any:
        assert options["attempts"] > 1
        return dataclasses.replace(timed_by_size(*args, **options), control=1.2)

    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", shaky)
    result = compress(target=Target(speedup=2.0))
    assert any("not steady" in note and "1.20" in note for note in result.report.notes)


@pytest.mark.usefixtures("fake_timing")
def test_time_that_widths_do_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch_bound(before: nn.Module, after: nn.Module, *_: Any, **__: Any) -> Any:
        return comparison(1 / (0.8 + 0.2 * parameters(after) / parameters(before)))

    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", launch_bound)
    with pytest.raises(TargetError, match=r"speedup=1\.2.*8\d% of the time stays.*larger batch"):
        compress(target=Target(speedup=1.5))
    notes = compress(target=Target(speedup=1.1)).report.notes
    assert any("of the time stays" in note for note in notes)


def test_losses_are_weighed_by_what_they_cost_the_outputs() -> None:
    class TwoBranches(nn.Module):
        """The second branch adds a hundredth of what the first does."""

        def __init__(self) -> None:
            super().__init__()
            self.loud, self.quiet = (
                nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loud(x) + 0.01 * self.quiet(x)

    rows = torch.randn(64, 8)
    graph = compiler.capture(TwoBranches().eval(), (rows,))
    widths: dict[bool, dict[str, int]] = {}
    for weigh in (True, False):
        state = Compilation(graph, [graph.program.flat_inputs((rows,), {})])
        passes.MagnitudeScore().run(state)
        state.errors = {n: torch.linspace(1, 0, 33) for n in graph.prunable}
        widths[weigh] = allocated(state, Target(params=0.6), weigh=weigh)
    loud, quiet = sorted(widths[True])
    assert loud.startswith("loud")
    assert widths[True][loud] > 32 * 0.9
    assert widths[True][quiet] < 32 * 0.3
    assert abs(widths[False][loud] - widths[False][quiet]) <= 2
