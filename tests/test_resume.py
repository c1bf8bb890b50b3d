"""A compile that was killed goes on: with the plan it had, and to the same result."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from typing import Any

import pytest
import torch
from test_allocation import deep_bert
from test_progressive import NoBiases, images, tokens
from tiny_models import IDS, IMAGES, comparison, small_cnn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.errors import PlanError


def test_a_later_round_has_checkpoints_of_its_own(tmp_path: pathlib.Path) -> None:
    data = images()
    options = {
        "steps": 3,
        "progress": False,
        "checkpoint": tmp_path / "run",
        "checkpoint_every": 1,
    }

    def compiled() -> compiler.Result:
        return compiler.compile(
            small_cnn(), (IMAGES,), target=Target(macs=0.3), rounds=2, calibration=data,
            train=data, measure=False, options={"distill": options},
        )  # fmt: skip

    first = compiled()
    assert (tmp_path / "run" / "round-2" / "step-3").is_dir()
    again = compiled()  # both rounds resume at their ends
    trained = [p for p in again.report.passes if p.name == "distill"]
    assert ["resumed at" in p.details for p in trained] == [True, True]
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_compile_goes_on_where_it_was_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images()
    asked = {"distill": {"steps": 3, "progress": False, "checkpoint_every": 1}}

    def compiled(place: pathlib.Path | None, target: Target = Target(macs=0.3)) -> compiler.Result:  # noqa: B008
        return compiler.compile(
            small_cnn(), (IMAGES,), target=target, rounds=2, calibration=data, train=data,
            measure=False, options=asked, checkpoint=place,
        )  # fmt: skip

    whole = compiled(None)
    place, steps = tmp_path / "run", []
    original = passes.Distill.run

    def killed(self: Any, state: Any) -> Any:
        steps.append(state.round)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return original(self, state)

    monkeypatch.setattr(passes.Distill, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        compiled(place)
    monkeypatch.setattr(passes.Distill, "run", original)

    def never(self: Any, state: Any) -> Any:
        raise AssertionError("planned again")

    monkeypatch.setattr(passes.AllocateWidths, "run", never)
    result = compiled(place)
    assert result.plan.kept == whole.plan.kept
    for a, b in zip(whole.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert result.report.aim == whole.report.aim
    names = [p.name for p in result.report.passes]
    assert names.count("known-plan") == 2
    with pytest.raises(PlanError, match=r"another compile \(it differs in target"):
        compiled(place, Target(macs=0.4))


@pytest.mark.slow
def test_dropped_branches_are_in_the_plan_that_is_kept(tmp_path: pathlib.Path) -> None:
    data = tokens()

    def compiled() -> compiler.Result:
        return compiler.compile(
            deep_bert(), kwargs={"input_ids": IDS}, target=Target(macs=0.6), calibration=data,
            measure=False, options={"allocate-widths": {"depth": 0.5, "exact_only": True}},
            checkpoint=tmp_path,
        )  # fmt: skip

    first, again = compiled(), compiled()
    assert first.plan == again.plan
    assert first.plan.dropped
    assert [b.state for b in first.report.branches] == [b.state for b in again.report.branches]


def interrupted(monkeypatch: pytest.MonkeyPatch, compiled: Any) -> None:
    """Compile until the training begins."""

    def killed(self: Any, state: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(passes.Distill, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled()


def test_the_room_that_a_target_leaves_is_known_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run had no room for biases, so the second one adds none either."""
    data = [torch.randn(64, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def compiled(place: pathlib.Path | None = tmp_path) -> compiler.Result:
        torch.manual_seed(0)
        return compiler.compile(
            NoBiases(), (data[0],), target=Target(params=0.4), calibration=data, train=data,
            measure=False, options={"distill": {"steps": 2, "progress": False}}, checkpoint=place,
        )  # fmt: skip

    whole = compiled(None)
    interrupted(monkeypatch, compiled)
    again = compiled()
    assert whole.report.after.params <= 0.4 * whole.report.before.params
    a, b = whole.model.state_dict(), again.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_mask_goes_on_growing_by_the_scores_there_were(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images()
    options = {"steps": 6, "gradual": 0.5, "progress": False}

    def compiled(place: pathlib.Path | None = tmp_path) -> compiler.Result:
        return compiler.compile(
            small_cnn(), (IMAGES,), target=Target(macs=0.4), calibration=data, train=data,
            measure=False, options={"distill": options}, checkpoint=place,
        )  # fmt: skip

    whole = compiled(None)
    interrupted(monkeypatch, compiled)
    for a, b in zip(whole.model.parameters(), compiled().model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_latency_in_rounds_goes_on_though_it_is_timed_anew(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((8.0, 9.0))
    namespace = inspect.unwrap(compiler.compile).__globals__
    monkeypatch.setitem(
        namespace, "compare_modules", lambda *_, **__: _timed(comparison(1.0), next(times))
    )
    goals = namespace["_targets"]
    seen: list[list[float]] = []

    def widths(target: Target, rounds: int, graph: Any) -> list[Target]:
        found = goals(target, rounds, graph)
        seen.append([t.value for t in found])
        return [Target(macs=0.6), Target(macs=0.4)]  # what they come to is not timed here

    monkeypatch.setitem(namespace, "_targets", widths)
    data = images()

    def compiled(batch: int = 1) -> compiler.Result:
        return compiler.compile(
            small_cnn(), (IMAGES,), target=Target(latency_ms=2.0, batch=batch), rounds=2,
            calibration=data, checkpoint=tmp_path, measure=False,
        )  # fmt: skip

    first, again = compiled(), compiled()
    assert seen == [pytest.approx([4.0, 2.0]), pytest.approx([(9 * 2) ** 0.5, 2.0])]
    assert first.plan.kept == again.plan.kept
    times = iter((8.0,))
    with pytest.raises(PlanError, match=r"differs in target"):
        compiled(batch=7)


def _timed(found: Any, milliseconds: float) -> Any:
    return dataclasses.replace(
        found, before=dataclasses.replace(found.before, median_ms=milliseconds)
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target": Target(macs=0.4, runtime="onnxruntime")}, "target"),
        ({"untie_tables": True}, "capture"),
        ({"calibration": [torch.zeros(8, 3, 8, 8)]}, "calibration"),
        ({"options": {"allocate-widths": {"round_to": 4}}}, "passes"),
        ({"rounds": 2}, "rounds"),
    ],
)
def test_another_compile_is_refused(
    tmp_path: pathlib.Path, changed: dict[str, Any], named: str
) -> None:
    asked: dict[str, Any] = {
        "target": Target(macs=0.4),
        "calibration": [torch.ones(8, 3, 8, 8)],
        "measure": False,
        "checkpoint": tmp_path,
    }
    compiler.compile(small_cnn(), (IMAGES,), **asked)
    with pytest.raises(PlanError, match=rf"another compile \(it differs in {named}"):
        compiler.compile(small_cnn(), (IMAGES,), **{**asked, **changed})
