"""The benchmarks of recovery and of headline trades: rows are kept, every cell is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunec import compiler

pytest.importorskip("sklearn", reason="the benchmarks need prunec[demo,bench]")
pytest.importorskip("torch_pruning", reason="the benchmarks need prunec[demo,bench]")

import headlines
import plain_digits
import record
import recovery
import recovery_table
import repair_subjects
import rows as rows_of
from rich.console import Console


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what a benchmark writes."""
    for module in (record, rows_of):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_rows_are_kept_between_runs_and_replaced_by_name(results: Path) -> None:
    first = rows_of.Rows("some", ("row",), resume=False)
    first.add({"row": "a", "value": 1.0})
    first.add({"row": "b", "value": 2.0})
    again = rows_of.Rows("some", ("row",), resume=True)
    assert not again.missing("a")
    again.drop("a")
    assert again.missing("a")
    again.add({"row": "a", "value": 3.0})
    assert [(r["row"], r["value"]) for r in again.found] == [("b", 2.0), ("a", 3.0)]
    assert (results / "some.json").is_file()


@pytest.mark.slow
def test_every_cell_of_the_recovery_table_is_measured(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_digits, "trained", lambda seed: _net())
    monkeypatch.setattr(recovery, "batches", lambda *_, **__: _batches())
    monkeypatch.setattr(recovery, "LABELLED", ("KD",))
    monkeypatch.setitem(recovery.STEPS, "digits", 3)
    monkeypatch.setitem(recovery.WIDTHS, "digits", ("1/8",))
    found = rows_of.Rows("recovery", recovery_table.KEY, resume=False)
    subject = repair_subjects.SUBJECTS["digits"](0, None)
    subject.calibration = subject.calibration[:1]
    recovery.measure(subject, 0, found)
    starts = [row["start"] for row in found.found]
    assert starts[:2] == ["original", "raw"]
    assert {"repaired", "3 rounds", "gradual", "scratch", "torch-pruning"} <= set(starts)
    assert all(0 <= row["accuracy"] <= 1 for row in found.found)
    recovery_table.print_tables(found.found, {"digits": 3}, Console(width=150))
    recovery_table.plot(found.found, results / "recovery.png")
    assert (results / "recovery.png").stat().st_size > 5000


def _net() -> Any:
    torch.manual_seed(0)
    return plain_digits.PlainNet().eval()


def _batches() -> list[Any]:
    images, labels = plain_digits.splits()["train"]
    return [(images[:32], labels[:32]), (images[32:64], labels[32:64])]


@pytest.mark.slow
def test_a_headline_has_size_quality_and_speed_of_each_file() -> None:
    def tiny(_: Path | None) -> headlines.Subject:
        images, labels = plain_digits.splits()["train"]
        part, truth = {"images": images[:64]}, labels[:64]
        return headlines.Subject(
            _net(),
            {"images": images[:4]},
            [part],
            [(part, truth)],
            {"steps": 2},
            lambda predict: float((predict(part).argmax(-1) == truth).double().mean()),
            "accuracy",
            4,
        )

    row = headlines.measured(
        headlines.Headline(tiny, compiler.Target(params=0.5), int8="static"), None
    )
    assert row["int8 bytes"] < row["result bytes"] < row["original bytes"]
    assert row["parameters"] <= 0.5
    assert min(row["torch"], row["onnxruntime result"], row["onnxruntime int8"]) > 0
    headlines.table([{"row": "tiny", **row}])
