"""Options of the command: those out of range, and those that nothing would come of."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import test_cli
from test_cli import HALF, Run

from prunec.compiler.sources.tasks import TASKS

run = test_cli.run

NET = ("compile", "@net", *HALF)


@pytest.mark.parametrize(
    "option",
    ["--max-samples", "--batch-size", "--pad-to", "--round-to", "--max-length", "--batch"],
)
@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_number_below_1_is_wrong_usage(run: Run, option: str, value: str) -> None:
    said = run(*NET, option, value)
    assert (said.code, option in said.err) == (2, True)


@pytest.mark.parametrize("device", ["potato", "meta", "cuda:99"])
@pytest.mark.parametrize("command", [(*NET, "--out", "a"), ("bench", "@net", "@net")])
def test_a_device_that_is_not_there_is_refused_before_the_model_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], device: str
) -> None:
    for name in ("bench", "compile"):
        monkeypatch.setattr(f"prunec.compiler.commands.{name}.open_model", None)
    said = run(*command, "--device", device)
    assert said.code == 1
    assert f"--device {device} cannot be computed on here" in said.err
    assert "take cpu" in said.err


def test_an_unknown_task_is_refused_without_data_too(run: Run) -> None:
    said = run(*NET, "--task", "nope")
    assert (said.code, "there is no task 'nope'" in said.err) == (1, True)
    assert all(name in said.err for name in TASKS)


def test_options_of_data_are_named_where_there_is_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunec.compiler.__main__.compile_command", lambda *_: None)
    given = ("--column", "label=x", "--learning-rate", "1", "--max-length", "9", "--steps", "2")
    said = run(*NET, *given)
    assert "without --data, nothing comes of --steps, --learning-rate, --column, --max-len" in (
        said.out
    )
    said = run(*NET, *given, "--eval-data", "x.csv")
    assert "without --data, nothing comes of --steps, --learning-rate\n" in said.out
    assert "nothing comes of" not in run(*NET, *given, "--data", "x.csv").out
    assert "nothing comes of" not in run(*NET).out


def test_a_pattern_that_excludes_nothing_is_refused(run: Run) -> None:
    said = run(*NET, "--exclude", "frist*")
    assert (said.code, "exclude='frist*' protects nothing" in said.err) == (1, True)


def test_multiples_wider_than_the_model_are_named(run: Run) -> None:
    said = run("compile", "@net", "--target", "params=0.5", "--no-measure", "--round-to", "128")
    assert (said.code, "round_to=128" in said.err) == (1, True)


def test_an_error_that_lets_nothing_go_says_to_allow_more(run: Run) -> None:
    given = ("--target", "error=1e-30", "--no-measure", "--data", "@batches", "--steps", "0")
    said = run("compile", "@net", *given)
    assert (said.code, "error=1e-30 lets nothing go" in said.err) == (1, True)
    assert "allow a larger error" in said.err


def test_a_sweep_into_a_file_is_refused_before_it_begins(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunec.compiler.commands.compile.sweep", None)
    pathlib.Path("taken").write_text("")
    said = run("compile", "@net", "--sweep", "params=0.7", "--out", "taken/below")
    assert (said.code, "exists and is no directory" in said.err) == (1, True)


@pytest.mark.parametrize("emit", ["int8-static", "torch,onnx", "torch"])
def test_what_is_emitted_is_timed(run: Run, monkeypatch: pytest.MonkeyPatch, emit: str) -> None:
    saved: dict[str, Any] = {}

    class Result:
        def save(self, *_: Any, **options: Any) -> None:
            saved.update(options)
            raise KeyboardInterrupt

    monkeypatch.setattr("prunec.compiler.commands.compile.compile", lambda *_, **__: Result())
    run("compile", "@net", "--target", "width=0.5", "--emit", emit)
    assert saved["measure"] == (() if emit == "torch" else ("onnxruntime",))
