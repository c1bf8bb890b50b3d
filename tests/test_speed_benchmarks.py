"""The benchmarks of speed: a dry run, what they count as met, what bounds the time, the budget."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import gpu
import gpu_table
import pytest
import speedup
import torch
from rich.console import Console
from tiny_models import timed_by_size

CPU = torch.device("cpu")
KEYS = dict(zip(speedup.KEYS, ("net", "torch", 2.0, "speedup"), strict=True))


def shown(table: Any) -> str:
    console = Console(width=250)
    with console.capture() as found:
        console.print(table)
    return found.get()


def target(measured: float, busy: bool = False, **other: Any) -> dict[str, Any]:
    numbers = {"low": 1.0, "high": 3.0, "control": 1.0, "load": 0.5, "macs": 0.4}
    return KEYS | numbers | {"measured": measured, "busy": busy} | other


def cell(runtime: str, after: float, **other: Any) -> dict[str, Any]:
    numbers = {"measured": 1.1, "low": 1.0, "high": 1.2, "control": 1.0, "steady": True}
    numbers |= {"before ms": 1.1 * after, "after ms": after, "macs": 0.5, "params": 0.6}
    peaks = {"of peak compute": 0.02, "of peak memory": 0.01}
    own = gpu.Cell("bert_base", "forward", "bf16", runtime, False)
    return vars(own) | {"batch": 1} | numbers | peaks | other


@pytest.mark.slow
def test_the_gpu_benchmark_runs_dry_on_a_cpu(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--dry-run", "--out", str(out)]
    command += ["--models", "llama_1b", "--dtypes", "fp16", "--runtimes", "torch,graph"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 cells ran, 4 failed, 0 targets were out of reach, 0 cells" in done.stdout
    kept = json.loads(out.read_text())
    assert kept["environment"]["device_name"]
    rows = kept["rows"]["cells"]
    ran = [row for row in rows if row["runtime"] == "torch"]
    assert {(r["phase"], r["batch"]) for r in ran} == {
        (phase, batch) for phase in ("prefill", "decode") for batch in (1, gpu.TINY_BATCH)
    }
    assert all(r["macs"] < 0.7 and r["measured"] > 0 and r["low"] <= r["high"] for r in ran)
    assert all("need a CUDA device" in r["failed"] for r in rows if r["runtime"] == "graph")


@pytest.mark.slow
@pytest.mark.usefixtures("fake_timing")
def test_a_speed_asked_for_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "compare_modules", timed_by_size)
    bench = gpu.Bench(CPU, gpu.Budget(600, alarm=False), tiny=True)
    row = bench.run(gpu.Cell("resnet_50", "forward", "fp32", "torch", True, 2.0))
    assert row["measured"] == pytest.approx(2.0, rel=0.05)
    assert row["predicted"] == pytest.approx(2.0, rel=0.1)
    assert row["macs"] < 1
    beyond = bench.run(gpu.Cell("resnet_50", "forward", "fp32", "torch", True, 1e4))
    assert "cannot be met" in beyond["out of reach"]
    assert gpu_table.summary(bench.rows)[:2] == [
        "1 cells ran, 0 failed, 1 targets were out of reach, 0 cells did not fit into the time",
        "1 of 1 targets of speed within 5%",
    ]
    assert "2x" in shown(gpu_table.table(bench.rows))


def test_a_cell_that_does_not_fit_is_left_out_and_listed() -> None:
    budget = gpu.Budget(20, alarm=False)
    bench = gpu.Bench(CPU, budget, tiny=True)
    row = bench.run(gpu.Cell("bert_base", "forward", "bf16", "compile", True))
    assert "20 s were left" in row["skipped"] or "19 s were left" in row["skipped"]
    said = gpu_table.summary(bench.rows)[-1]
    assert said.startswith("skipped: bert_base forward bf16 compile batch 4 half: about")
    with budget.spend("compile"):
        pass
    assert budget.expected["compile"] < 1  # one ran, so no guess is needed
    assert budget.expected["graph"] == gpu.GUESSES["graph"]


def test_a_model_that_cannot_be_made_fails_its_cells_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def broken(name: str, *_: Any) -> None:
        made.append(name)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "Subject", broken)
    bench = gpu.Bench(CPU, gpu.Budget(600, alarm=False), tiny=True)
    for many in (False, True):
        row = bench.run(gpu.Cell("bert_base", "forward", "bf16", "torch", many))
        assert "out of memory" in row["failed"]
    assert made == ["bert_base"]


def test_what_still_runs_at_the_end_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="time was over"), gpu.Budget(0.05).spend("compile"):
        time.sleep(30)


def test_the_plan_has_every_cell_once_and_the_telling_ones_first() -> None:
    cells = gpu.plan(list(gpu.SHAPES), list(gpu.DTYPES), list(gpu.RUNTIMES))
    assert len(set(cells)) == len(cells)
    half = {(c.model, c.phase, c.dtype, c.runtime, c.many) for c in cells if not c.asked}
    phases = sum(len(shape.phases) for shape in gpu.SHAPES.values())
    # compile and eager everywhere, CUDA graphs too; two batches
    assert len(half) == phases * len(gpu.DTYPES) * len(gpu.RUNTIMES) * 2
    assert all(c.dtype == "bf16" and c.runtime != "compile" for c in cells[:20])
    assert not [c for c in cells if c.asked and c.phase == "decode"]


def test_what_bounds_the_time_is_named_where_a_cut_pays_less_than_its_macs() -> None:
    eager, graph = cell("torch", 4.0), cell("graph", 1.0)
    assert gpu_table.bound(eager, [eager, graph]) == "launches: the device is idle 75% of a call"
    assert gpu_table.bound(eager, [eager]).startswith("small kernels: 2% of peak compute")
    read = cell("graph", 1.0) | {"of peak memory": 0.7}
    assert gpu_table.bound(read, [read]) == "memory: weights read at 70% of peak"
    busy = cell("torch", 4.0) | {"of peak compute": 0.6}
    assert gpu_table.bound(busy, [busy, cell("graph", 3.9)]) == "compute: 60% of peak"
    assert gpu_table.bound(cell("torch", 4.0, measured=1.8), [graph]) == ""


def test_targets_are_counted_as_met_within_five_per_cent() -> None:
    rows = [target(2.09), target(1.85, asked=2.0, model="b"), target(1.99, busy=True, model="c")]
    assert [speedup.met(row) for row in rows] == [True, False, True]
    assert speedup.summary(rows) == [
        "torch: 2 of 3 targets of speed within 5%; on a quiet machine 1 of 2"
    ]
    failed = KEYS | {"method": "params", "failed": "no room"}
    text = shown(speedup.table([*rows[:1], failed]))
    assert "2.09x" in text
    assert "no: no room" in text
    assert "1.99x !" in shown(speedup.table(rows[2:]))


@pytest.mark.slow
@pytest.mark.usefixtures("fake_timing")
def test_every_method_has_a_row_and_known_rows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning", reason="the benchmarks need prunec[bench]")
    monkeypatch.setattr(speedup, "compare_modules", timed_by_size)

    def small() -> Any:
        torch.manual_seed(0)
        return speedup.UnevenCnn(8), {"x": torch.randn(2, 3, 32, 32)}

    monkeypatch.setattr(speedup, "MODELS", {"small": (small, 4)})
    kept: list[Any] = []
    rows = speedup.run(["small"], ["torch"], [1.5], [], kept.append)
    assert [row["method"] for row in rows] == list(speedup.METHODS) and kept == rows  # noqa: PT018
    by_method = {row["method"]: row for row in rows}
    asked, params, macs, peer = (by_method[m] for m in speedup.METHODS)
    assert speedup.met(asked)
    assert asked["measured"] == pytest.approx(1 / asked["params"])
    assert params["params"] <= 1 / 1.5 + 1e-9
    assert macs["macs"] <= 1 / 1.5 + 1e-9
    assert 0.5 < peer["macs"] < 1  # whole channels of 8
    assert peer["measured"] == pytest.approx(1 / peer["params"])
    assert speedup.run(["small"], ["torch"], [1.5], rows, kept.append) == rows
    assert len(kept) == 4
    unequalled = speedup.Subject("small", 1.0).row("torch", 3.0, "torch-pruning", rows)
    assert "no MACs to be equal to" in unequalled["failed"]


def test_the_peer_is_cut_to_equal_macs() -> None:
    pytest.importorskip("torch_pruning", reason="the benchmarks need prunec[bench]")
    import peer

    torch.manual_seed(0)
    model, inputs = speedup.UnevenCnn(32), {"x": torch.randn(2, 3, 32, 32)}
    smaller = peer.prune_to_macs(model, inputs, 0.4)
    share = peer.macs(smaller, inputs) / peer.macs(model, inputs)
    assert share == pytest.approx(0.4, rel=0.05)
    assert smaller(**inputs).shape == (2, 10)
    assert model.stem.out_channels == 32
