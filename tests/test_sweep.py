"""Sweeps: one set of scores, a row for each target, the front, the picture."""

from __future__ import annotations

import inspect
import json
import pathlib

import pytest
import torch
from compiled import images
from tiny_models import IMAGES, parameters, small_cnn
from torch import nn

from prunec import compiler
from prunec.compiler import Target
from prunec.compiler.errors import PlanError, TargetError
from prunec.compiler.quality import output_error
from prunec.compiler.sweep import Sweep, SweepRow


def row(asked: str, speedup: float, error: float) -> SweepRow:
    return SweepRow(asked, speedup, speedup, speedup, speedup, 0.5, 0.5, error)


@pytest.mark.usefixtures("fake_timing")
def test_each_target_is_solved_from_one_set_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    scores = inspect.unwrap(compiler.sweep).__globals__["_KnownScores"]
    whole = scores.run

    def known(self, state):
        scored.append(id(self.state.scores))
        return whole(self, state)

    monkeypatch.setattr(scores, "run", known)
    model = small_cnn()
    found = compiler.sweep(
        model,
        (IMAGES,),
        targets=Target.parse_several("1.5,3,1000"),
        calibration=images(),
        evaluate=lambda m: float(-parameters(m)),
    )
    assert len(set(scored)) == 1
    mild, harsh, impossible = found.rows
    assert mild.speedup == pytest.approx(1.5, rel=0.1)
    assert harsh.speedup == pytest.approx(3, rel=0.1)
    assert mild.error is not None and harsh.error is not None  # noqa: PT018
    assert 0 < mild.error < harsh.error
    assert "cannot be met" in impossible.failed
    assert found.original == -parameters(model)
    text = str(found)
    assert "out of reach" in text
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["asked"] == "speedup=1.5"


def test_the_front_is_what_nothing_beats() -> None:
    rows = (row("a", 1.5, 0.1), row("b", 2.0, 0.05), row("c", 3.0, 0.2), row("d", 2.9, 0.3))
    found = Sweep("Net", rows, "torch", "cpu", None)
    assert [r.asked for r in found.front()] == ["c", "b"]


def test_the_picture_is_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    found = Sweep("Net", (row("a", 1.5, 0.1), row("b", 2.0, 0.2)), "torch", "cpu", None)
    path = found.plot(tmp_path / "sweep.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_output_error_is_relative_to_the_original() -> None:
    double, halved = nn.Linear(4, 3), nn.Linear(4, 3)
    halved.load_state_dict({n: t / 2 for n, t in double.state_dict().items()})
    calls = [((torch.randn(5, 4),), {}) for _ in range(2)]
    assert output_error(double, halved, calls) == pytest.approx(0.25)
    assert output_error(double, double, calls) == 0


def test_targets_of_a_sweep_share_runtime_and_batch() -> None:
    targets = [Target(speedup=2), Target(speedup=2, batch=4)]
    with pytest.raises(TargetError, match="one runtime and batch"):
        compiler.sweep(small_cnn(), (IMAGES,), targets=targets)
    assert Target.parse_several("params=0.7,0.5") == [Target(params=0.7), Target(params=0.5)]


def test_what_is_refused_for_every_target_is_an_error() -> None:
    options = {"allocate-widths": {"exclude": "frist*"}}
    targets = Target.parse_several("params=0.7,0.5")
    with pytest.raises(PlanError, match="exclude='frist\\*' protects nothing"):
        compiler.sweep(small_cnn(), (IMAGES,), targets=targets, options=options)
