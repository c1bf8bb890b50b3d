"""`prunec bench`: what it times is what its table says."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pytest
import test_cli
import torch
from saved import Saved
from test_cli import Run
from tiny_models import SmallCnn, comparison
from torch import fx, nn

from prunec.compiler.onnx_files.export import export_onnx

run, quick = test_cli.run, test_cli.quick


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that would have been timed."""
    seen: list[Any] = []

    def compare(before: nn.Module, after: nn.Module, *_: Any, **options: Any) -> Any:
        seen.append((before, after))
        return comparison(2.0, options["runtime"], options["batch"])

    monkeypatch.setattr("prunec.compiler.commands.bench.compare_modules", compare)
    return seen


@pytest.mark.usefixtures("quick")
def test_a_file_fixed_at_a_batch_is_timed_at_that_one_and_at_no_other(
    run: Run, tmp_path: pathlib.Path
) -> None:
    export_onnx(nn.Linear(4, 3), (torch.randn(2, 4),), {}, tmp_path / "a.onnx", dynamic_batch=False)
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")
    said = run("bench", "a.onnx", "b.onnx")
    assert said.code == 0, said.err
    rows = [line.split("│")[2].strip() for line in said.out.splitlines() if "│ onnx" in line]
    assert rows == ["2"]
    assert "\ncpu, 1 thread " in said.out
    said = run("bench", "a.onnx", "b.onnx", "--batch", "2", "--batch", "32")
    assert (said.code, "fixed at batch 2" in said.err) == (1, True)


def test_an_artifact_of_the_other_side_is_timed_as_its_class(
    run: Run, cnn: Saved, timed: list[Any]
) -> None:
    for pair in (("@net", str(cnn.place)), (str(cnn.place), "@net")):
        said = run("bench", *pair, "--batch", "2")
        assert said.code == 0, said.err
        assert "as a graph" not in said.out
        assert [type(model) for model in timed.pop()] == [SmallCnn, SmallCnn]


def test_an_artifact_without_its_class_is_said_to_be_timed_as_a_graph(
    run: Run, cnn: Saved, timed: list[Any]
) -> None:
    said = run("bench", str(cnn.place), str(cnn.place), "--batch", "2")
    assert said.code == 0, said.err
    assert said.out.count("as a graph") == 2
    assert isinstance(timed[0][1], fx.GraphModule)


def test_models_of_different_inputs_are_no_pair(run: Run, timed: list[Any]) -> None:
    said = run("bench", "@two", "@net")
    assert (said.code, timed) == (1, [])
    assert "does not run at batch 1 on the inputs of" in said.err
