"""Timing: what is interleaved, what is refused, what is left as it was."""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
import time

import pytest
import torch
from torch import nn

from prunec.compiler.capture.batch import batch_size, resize_batch
from prunec.compiler.errors import MeasureError
from prunec.compiler.measure import timing
from prunec.compiler.measure.environment import describe
from prunec.compiler.measure.model_timing import compare_modules
from prunec.compiler.measure.timing import compare

QUICK = {"min_rounds": 4, "max_seconds": 0.0, "warmup_seconds": 0.0}


class Recorder(nn.Module):
    """A layer that notes the inputs it sees, and may sleep."""

    def __init__(self, width: int = 8, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, width), nn.Dropout(0.5))
        self.seconds = seconds
        seen: list[tuple[torch.Size, bool, bool]] = []
        self.note, self.noted = seen.append, lambda: seen  # what the model holds itself is put back

    def forward(self, x: torch.Tensor, flag: bool = True) -> torch.Tensor:
        self.note((x.shape, self.layer.training, torch.is_inference_mode_enabled()))
        time.sleep(self.seconds)
        return self.layer(x)


def test_ratio_is_that_of_the_two_calls_and_control_is_one() -> None:
    timed = compare(
        lambda: time.sleep(0.02),
        lambda: time.sleep(0.01),
        **QUICK | {"min_rounds": 9, "attempts": 5},
    )
    assert 1.3 < timed.ratio < 2.4
    assert timed.ratio_low <= timed.ratio <= timed.ratio_high
    assert 0.7 < timed.control < 1.4
    assert 19.9 < timed.before.low_ms <= timed.before.median_ms <= timed.before.high_ms
    assert timed.before.runs == timed.after.runs == 9


@pytest.mark.slow
def test_a_shaky_timing_is_taken_again_and_the_steadiest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controls = iter([1.4, 1.1, 0.99, 1.0])
    whole = timing._summary

    def summary(*args, **kwargs):
        return dataclasses.replace(whole(*args, **kwargs), control=next(controls))

    monkeypatch.setattr(timing, "_summary", summary)
    found = compare(lambda: None, lambda: None, **QUICK, attempts=4)
    assert (found.control, found.attempts, found.steady) == (0.99, 3, True)
    controls = iter([1.4, 1.1, 1.3])
    found = compare(lambda: None, lambda: None, **QUICK, attempts=3)
    assert (found.control, found.attempts, found.steady) == (1.1, 3, False)
    assert dataclasses.replace(found, batch=8).throughput == 8e3 / found.after.median_ms


def test_rounds_alternate_which_goes_first() -> None:
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.sleep(0.003)  # one call a sample

    compare(lambda: call("a"), lambda: call("b"), **QUICK)
    assert "".join(calls).endswith("abbaabba")


def test_short_calls_are_repeated_within_a_sample() -> None:
    calls: list[str] = []
    compare(lambda: calls.append("a"), lambda: time.sleep(0.003), **QUICK)
    assert len(calls) > 4 * 50


def test_control_and_interval_follow_from_the_samples_alone() -> None:
    after = torch.full((8,), 2.0, dtype=torch.float64)
    steady = torch.full((8,), 6.0, dtype=torch.float64)
    drifting = torch.tensor([4.0, 4.0, 6.0, 6.0] * 2, dtype=torch.float64)
    summary = functools.partial(
        timing._summary, seed=3, environment=describe("cpu"), runtime="torch"
    )
    exact = summary(steady, after)
    assert (exact.ratio, exact.ratio_low, exact.ratio_high, exact.control) == (3, 3, 3, 1)
    assert exact.steady
    noisy = summary(drifting, after)
    assert noisy.control == pytest.approx(4 / 6)
    assert not noisy.steady
    assert (noisy.ratio_low, noisy.ratio_high) == (2, 3)
    assert summary(drifting, after) == noisy


def test_modules_run_resized_in_eval_mode_and_keep_their_own() -> None:
    before, after = Recorder(), Recorder(4)
    before.layer[0].eval()
    modes = [module.training for module in before.modules()]
    timed = compare_modules(before, after, (torch.randn(2, 6),), {"flag": False}, batch=5, **QUICK)
    assert [module.training for module in before.modules()] == modes == [True, True, False, True]
    for model in (before, after):
        assert set(model.noted()) == {(torch.Size([5, 6]), False, True)}
    assert (timed.batch, timed.dtype, timed.runtime) == (5, "float32", "torch")
    assert timed.peak_before_bytes is None
    assert json.loads(json.dumps(timed.to_json()))["after"]["runs"] == 4


def test_threads_hold_for_the_measurement_only() -> None:
    had = torch.get_num_threads()
    timed = compare_modules(Recorder(), Recorder(), (torch.randn(2, 6),), threads=had + 1, **QUICK)
    assert timed.threads == had + 1
    assert torch.get_num_threads() == had


def test_unlike_is_not_compared() -> None:
    x = (torch.randn(2, 6),)
    one, other = Recorder(), Recorder()
    with pytest.raises(MeasureError, match="float32 before, float64 after"):
        compare_modules(one, Recorder().double(), x)
    with pytest.raises(MeasureError, match="'after' has tensors on meta"):
        compare_modules(one, Recorder().to("meta"), x)
    with pytest.raises(MeasureError, match="One of the two models is compiled"):
        compare_modules(one, torch.compile(other, backend="eager"), x)
    with pytest.raises(MeasureError, match="give both, or neither"):
        compare_modules(one, other, x, runtime="onnxruntime", onnx_before="a.onnx")
    with pytest.raises(MeasureError, match="torch, compile, onnxruntime"):
        compare_modules(one, other, x, runtime="tensorrt")
    with pytest.raises(MeasureError, match="4 or more"):
        compare_modules(one, other, x, min_rounds=3)
    assert not one.noted()


def test_compile_times_compiled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(whole, backend=backend))
    before, after = (nn.Linear(6, width) for width in (8, 4))
    timed = compare_modules(before, after, (torch.randn(2, 6),), runtime="compile", **QUICK)
    assert timed.runtime == "compile"
    assert len(graphs) == 2

    def broken(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(whole, backend=broken))
    with pytest.raises(MeasureError, match=r"no C\+\+ compiler.*runtime='torch'"):
        compare_modules(before, after, (torch.randn(2, 6),), runtime="compile", **QUICK)


@pytest.mark.slow
def test_onnxruntime_times_both_exports_with_the_same_threads(tmp_path) -> None:
    from prunec.compiler.onnx_files.export import export_onnx

    before, after = (nn.Sequential(nn.Linear(6, width), nn.ReLU()) for width in (512, 4))
    x = (torch.randn(2, 6),)
    timed = compare_modules(before, after, x, runtime="onnxruntime", batch=64, threads=1, **QUICK)
    assert timed.ratio > 1
    assert (timed.runtime, timed.batch, timed.threads) == ("onnxruntime", 64, 1)

    file = tmp_path / "after.onnx"
    export_onnx(after, x, {}, file, dynamic_batch=False)
    given = {"onnx_before": file, "onnx_after": file}
    assert compare_modules(before, after, x, runtime="onnxruntime", **given, **QUICK).batch == 2
    with pytest.raises(MeasureError, match="fixed batch runs no other"):
        compare_modules(before, after, x, runtime="onnxruntime", batch=3, **given, **QUICK)


def test_resize_batch_changes_what_has_the_batch_and_nothing_else() -> None:
    x, mask = torch.arange(6).view(2, 3), torch.ones(2, dtype=torch.bool)
    table, scale = torch.zeros(5, 2), torch.tensor(2.0)
    args, kwargs = resize_batch((scale, x, [table]), {"mask": mask, "flag": True}, 5)
    assert torch.equal(args[1], x[[0, 1, 0, 1, 0]])
    assert kwargs["mask"].shape == (5,)
    assert args[0] is scale
    assert args[2][0] is table
    assert kwargs["flag"] is True
    assert torch.equal(resize_batch((x,), {}, 1)[0][0], x[:1])
    assert batch_size((scale,), {"mask": mask}) == 2
    assert batch_size((scale, 3), {}) is None
    with pytest.raises(MeasureError, match="no tensor with a batch axis"):
        resize_batch((scale,), {}, 2)
    with pytest.raises(MeasureError, match="ask for 1 or more"):
        resize_batch((x,), {}, 0)


def test_environment_names_versions_and_no_machine() -> None:
    facts = describe("cpu", torch.float16)
    assert facts["torch"] == str(torch.__version__)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["dtype"] == "float16"
    assert facts["onnxruntime"]
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert "/" not in text.replace(facts["device_name"], "")
