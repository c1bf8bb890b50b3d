"""What a target asks for is met on the result itself, or refused with what was reachable."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import compress, halved, small_bert
from tiny_models import (
    IMAGES,
    SmallCnn,
    comparison,
    parameters,
    small_cnn,
    tensor_bytes,
    timed_by_size,
    tiny_bert,
)
from torch import nn

from prunec import compiler
from prunec.compiler import Target
from prunec.compiler.errors import (
    PlanError,
    PrunecError,
    TargetError,
)
from prunec.compiler.measure.cost import cost


def test_width_halves_every_channel_dimension() -> None:
    model = halved().model
    assert isinstance(model, SmallCnn)
    assert (model.first.out_channels, model.second.out_channels) == (8, 12)
    assert model.head.in_features == 12


@pytest.mark.parametrize(("build", "share"), [(small_cnn, 0.5), (small_cnn, 0.2), (tiny_bert, 0.4)])
def test_params_target_is_met_by_the_parameters_of_the_result(
    build: Callable[[], nn.Module], share: float
) -> None:
    model = build()
    if build is tiny_bert:
        result = small_bert(share)
    else:
        result = compress(model, target=Target(params=share))
    kept = parameters(result.model) / parameters(model)
    assert share * 0.85 < kept <= share
    assert type(result.model) is type(model)
    assert parameters(result.model) == result.report.after.params
    assert parameters(model) == result.report.before.params


def test_bytes_target_is_met_by_the_tensors_of_the_result() -> None:
    model = small_cnn()
    result = compress(model, target=Target(bytes=0.4))
    assert 0.3 < tensor_bytes(result.model) / tensor_bytes(model) <= 0.4
    assert tensor_bytes(result.model) == result.report.after.bytes
    assert tensor_bytes(model) == result.report.before.bytes


@pytest.mark.parametrize("kind", ["params", "bytes"])
def test_a_repair_adds_biases_only_where_the_target_leaves_room(kind: str) -> None:
    model = nn.Sequential(
        nn.Linear(8, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(),
        nn.Linear(64, 4, bias=False),
    ).eval()  # fmt: skip
    rows = [torch.randn(64, 8) for _ in range(4)]
    for value in (0.5, 0.9):
        result = compress(model, (rows[0],), target=Target(**{kind: value}), calibration=rows)
        before, after = (getattr(c, kind) for c in (result.report.before, result.report.after))
        assert after <= value * before
        details = next(p for p in result.report.passes if p.name == "reconstruct").details
        assert details["biases added"] == ["4.bias"]  # four entries fit, those of a wide layer not
        assert "leaves no room" in details["layers"]["2.weight"]["note"]


def test_macs_target_is_met_by_the_captured_result() -> None:
    result = compress(target=Target(macs=0.4))
    before = cost(compiler.capture(small_cnn(), (IMAGES,))).macs
    after = cost(compiler.capture(result.model.eval(), (IMAGES,))).macs
    assert 0.3 < after / before <= 0.4
    assert (before, after) == (result.report.before.macs, result.report.after.macs)


def test_share_target_out_of_reach_names_what_is_reachable() -> None:
    with pytest.raises(TargetError, match=r"params=0\.001 cannot be met.*params=0\.0\d"):
        compress(target=Target(params=0.001))


def test_target_that_rounds_to_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        compress(target=Target(width=0.99))


def test_model_without_prunable_dimensions_is_an_error() -> None:
    with pytest.raises(TargetError, match="no dimension can be pruned"):
        compress(nn.Linear(4, 3), torch.randn(2, 4))


def test_norm_coupled_width_is_used_only_when_exact_dimensions_do_not_suffice() -> None:
    mild, harsh = small_bert(0.9), small_bert(0.4)
    assert mild.model.config.hidden_size == 32
    assert not any("norm-coupled ones" in note for note in mild.report.notes)
    assert harsh.model.bert.pooler.dense.in_features < 32
    assert any("norm-coupled ones" in note for note in harsh.report.notes)


@pytest.mark.usefixtures("fake_timing")
@pytest.mark.parametrize("wanted", [1.3, 2.0, 4.0])
def test_speed_target_is_found_within_the_tolerance(wanted: float) -> None:
    model = small_cnn()
    result = compress(model, target=Target(speedup=wanted))
    assert wanted * 0.97 <= parameters(model) / parameters(result.model) <= wanted * 1.15


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_is_found_within_the_tolerance() -> None:
    model = small_cnn()
    result = compress(model, target=Target(latency_ms=5.0))  # the original takes 12
    found = 12 * parameters(result.model) / parameters(model)
    assert 5 / 1.15 <= found <= 5 / 0.97


@pytest.mark.usefixtures("fake_timing")
def test_speed_target_out_of_reach_names_the_best_speed() -> None:
    with pytest.raises(TargetError, match=r"speedup=1000 cannot be met.*speedup=\d") as caught:
        compress(target=Target(speedup=1000))
    best = re.search(
        r"reaches speedup=([0-9.]+)\. With every width at its floor", str(caught.value)
    )
    assert best is not None
    assert 10 < float(best[1]) < 1000


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_out_of_reach_names_the_best_latency() -> None:
    with pytest.raises(TargetError, match=r"reaches latency_ms=0\.\d"):
        compress(target=Target(latency_ms=0.001))


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_without_anything_to_round_away_is_an_error() -> None:
    options = {"allocate-widths": {"round_to": 64}}
    with pytest.raises(PrunecError, match=r"cannot be met|changes nothing"):
        compress(target=Target(latency_ms=6.0), options=options)


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_that_the_original_meets_is_an_error() -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        compress(target=Target(latency_ms=20.0))


def test_speed_target_reaches_the_runtime_and_batch_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[Any, Any]] = set()

    def timed(*args: Any, **options: Any) -> Any:
        seen.add((options["runtime"], options["batch"]))
        return timed_by_size(*args, **options)

    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", timed)
    compress(target=Target(speedup=2, runtime="compile", batch=5))
    assert seen == {("compile", 5)}


def test_speed_that_falls_short_when_measured_again_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", timed_by_size)
    monkeypatch.setattr("prunec.compiler.result.compare_modules", lambda *_, **__: comparison(1.25))
    result = compress(target=Target(speedup=2), measure=True)
    assert any("asked for speedup=2, measured 1.25x" in n for n in result.report.notes)
    assert {c.ratio for c in result.report.latency} == {1.25}


@pytest.mark.usefixtures("fake_timing")
def test_measuring_covers_batch_1_and_a_throughput_batch() -> None:
    assert [c.batch for c in compress(measure=True).report.latency] == [1, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one aim"),
        ({"width": 0.5, "params": 0.5}, "one aim"),
        ({"width": 0.0}, r"\(0, 1\]"),
        ({"macs": 1.5}, r"\(0, 1\]"),
        ({"speedup": 0.5}, "at least 1"),
        ({"latency_ms": -1.0}, "positive"),
        ({"speedup": 2, "runtime": "tensorrt"}, "runtime is one of"),
    ],
)
def test_target_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Target(**options)


@pytest.mark.parametrize("text", ["2", "speed=2", "width=", "width=half", "params=1.2.3"])
def test_target_text_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="target"):
        Target.parse(text)


def test_target_text_is_read() -> None:
    assert Target.parse(" speedup = 2x", "compile", 8) == Target(
        speedup=2, runtime="compile", batch=8
    )


def test_target_of_another_type_is_refused() -> None:
    with pytest.raises(TargetError, match="target is a Target"):
        compress(target=0.5)
