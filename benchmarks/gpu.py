"""Speed on a GPU: half of the heads, hidden units and channels cut, and speeds asked for.

    python benchmarks/gpu.py [--minutes 7.5] [--models llama_1b,...] [--dtypes bf16,...]
                             [--runtimes torch,...] [--out FILE]
    python benchmarks/gpu.py --device cpu --dry-run      # tiny models, what a test runs

ResNet-50, ViT-B/16, BERT-base and a Llama of 1B parameters (a prompt; one token at a time), made
from configurations, random weights: no network, and prunec need not be installed. bf16, fp16 and
fp32; batch 1 and a throughput batch; eager, CUDA graphs (the same kernels without their launches)
and torch.compile. Every cell times original and result in turn, with the original against itself
as a control. Cells come in order of what they tell; those that would not fit into the time are
listed. One that fails says why and the next one runs. Writes results/gpu.json after every cell.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
from gpu_subjects import DTYPES, SHAPES, Replayed, Smaller, Subject, device_peaks, smaller
from gpu_table import bound, summary, table
from record import record
from rich.console import Console
from torch import nn

from prunec.compiler.cause import cause
from prunec.compiler.errors import TargetError
from prunec.compiler.measure.model_timing import compare_modules
from prunec.compiler.measure.timing import Comparison
from prunec.compiler.plan import Plan
from prunec.passes.allocation import candidate

RUNTIMES = ("torch", "graph", "compile")
# Seconds that a cell is expected to take before one of its kind ran.
GUESSES = {"prepare": 15.0, "torch": 6.0, "graph": 6.0, "asked": 40.0, "compile": 60.0}
CANDIDATE_SECONDS = 1.5  # that a compile to a speed times each candidate; events are exact
TINY_BATCH = 4  # of a dry run
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One comparison. `runtime`: "torch" is eager, "graph" a replayed CUDA graph. `many`: the
    throughput batch instead of batch 1. `asked`: a speed-up to compile for instead of the half."""

    model: str
    phase: str
    dtype: str
    runtime: str
    many: bool
    asked: float | None = None

    @property
    def kind(self) -> str:
        """What its time is guessed by."""
        return "asked" if self.asked and self.runtime == "torch" else self.runtime


def plan(models: list[str], dtypes: list[str], runtimes: list[str]) -> list[Cell]:
    """All cells, in the order of what they tell; by dtype and model within a stage, since making
    one takes seconds."""

    def stage(
        own: str, dtype: str, batches: tuple[bool, ...], asked: float | None = None
    ) -> list[Cell]:
        return [
            Cell(name, phase, dtype, runtime, many, asked)
            for name in models
            for phase in SHAPES[name].phases
            if asked is None or phase != "decode"  # a graph is captured on whole prompts
            for many in batches
            for runtime in own.split()
        ]

    both = (False, True)
    cells = stage("torch graph", "bf16", both)
    cells += [*stage("torch", "bf16", (True,), 2.0), *stage("torch", "bf16", (False,), 1.5)]
    cells += stage("compile", "bf16", (True,))
    cells += [*stage("torch graph", "fp32", both), *stage("torch graph", "fp16", both)]
    cells += stage("compile", "bf16", (False,))
    cells += [*stage("torch", "bf16", (True,), 1.5), *stage("compile", "bf16", (True,), 2.0)]
    cells += [*stage("torch", "fp32", (True,), 2.0), *stage("compile", "fp32", both)]
    cells += stage("compile", "fp16", both)
    return [c for c in cells if c.dtype in dtypes and c.runtime in runtimes]


class Budget:
    """The time there is. `alarm`: a cell that is still running at the end is stopped."""

    def __init__(self, seconds: float, alarm: bool = True) -> None:
        self.end = time.monotonic() + seconds
        self.alarm = alarm and hasattr(signal, "setitimer")
        self.expected = dict(GUESSES)
        self._seen: set[str] = set()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Time what runs, so that the next of its kind is expected to take as long."""
        began = time.monotonic()
        try:
            with self._alarmed() if self.alarm else contextlib.nullcontext():
                yield
        finally:
            took = time.monotonic() - began
            known = self.expected[kind] if kind in self._seen else 0.0
            self.expected[kind] = max(known, took)
            self._seen.add(kind)

    @contextlib.contextmanager
    def _alarmed(self) -> Iterator[None]:
        """Raises TimeoutError in what runs when the time is over."""
        handler = signal.signal(signal.SIGALRM, _stop)
        timer = signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)


def _stop(number: int, frame: Any) -> None:
    raise TimeoutError("still running when the time was over")


class Bench:
    """Runs cells on one device; holds the models of one dtype at a time, and the plans of all."""

    def __init__(self, device: torch.device, budget: Budget, tiny: bool = False) -> None:
        self.device, self.budget, self.tiny = device, budget, tiny
        self.rows: list[Row] = []
        self.peaks: dict[str, dict[str, float]] = {}
        self._subjects: dict[str, Subject] = {}
        self._plans: dict[str, tuple[Plan, Smaller]] = {}
        self._broken: dict[tuple[str, str], str] = {}

    def run(self, cell: Cell) -> Row:
        """One cell's row: numbers, or why there are none."""
        row: Row = dataclasses.asdict(cell)
        row["batch"] = batch = self._batch(cell)
        began = time.monotonic()
        made = self._subjects.get(cell.model)
        held = made is not None and made.dtype == cell.dtype
        needed = self.budget.expected[cell.kind] + (0 if held else self.budget.expected["prepare"])
        if needed > self.budget.left:
            row["skipped"] = f"about {needed:.0f} s, {max(self.budget.left, 0):.0f} s were left"
        else:
            try:
                subject = self._held(cell)
                with self.budget.spend(cell.kind):
                    row |= self._measured(subject, cell, batch)
            except TargetError as error:
                row["out of reach"] = cause(error)
            except Exception as error:  # whatever CUDA, inductor or a compile raise
                row["failed"] = cause(error)[:500]
                row["where"] = traceback.format_exc()[-2000:]
            row["seconds"] = round(time.monotonic() - began, 1)
            self._free()
        self.rows.append(row)
        return row

    def _held(self, cell: Cell) -> Subject:
        key = cell.model, cell.dtype
        self._subjects = {n: s for n, s in self._subjects.items() if s.dtype == cell.dtype}
        if cell.model in self._subjects:
            return self._subjects[cell.model]
        if key in self._broken:
            raise RuntimeError(self._broken[key])
        self._free()
        try:
            with self.budget.spend("prepare"):
                if cell.dtype not in self.peaks:
                    self.peaks[cell.dtype] = device_peaks(self.device, cell.dtype, self.tiny)
                known = self._plans.get(cell.model)
                made = Subject(cell.model, cell.dtype, self.device, self.tiny, known)
        except Exception as error:
            self._broken[key] = f"the model could not be made or cut: {cause(error)[:400]}"
            raise RuntimeError(self._broken[key]) from error
        self._plans[cell.model] = made.plan, dataclasses.replace(made.half, model=nn.Identity())
        self._subjects[cell.model] = made
        return made

    def _batch(self, cell: Cell) -> int:
        if not cell.many:
            return 1
        return TINY_BATCH if self.tiny else SHAPES[cell.model].many

    def _measured(self, subject: Subject, cell: Cell, batch: int) -> Row:
        cut, found = subject.half, {}
        if cell.asked:
            result = subject.asked(cell.asked, batch, cell.runtime)
            cut, aim = smaller(result), result.report.aim
            gone = [b.name for b in result.report.branches if b.state == "dropped"]
            found = {"predicted": aim.predicted if aim else None, "notes": result.report.notes}
            found["branches dropped"] = len(gone)
        timed = self._timed(subject, cut.model, cell, batch)
        found |= numbers(timed, cut)
        macs = cut.macs_left * batch
        if cell.phase == "decode":
            macs //= subject.length  # counted for the prompt
        peak, ms = self.peaks[cell.dtype], timed.after.median_ms
        found["of peak compute"] = 2 * macs / ms / 1e9 / peak["TFLOP/s"]
        found["of peak memory"] = cut.bytes / ms / 1e6 / peak["GB/s"]
        return found

    def _timed(self, subject: Subject, smaller: nn.Module, cell: Cell, batch: int) -> Comparison:
        pair, inputs = subject.pair(smaller, cell.phase, batch)
        if cell.runtime == "graph":
            if self.device.type != "cuda":
                raise RuntimeError("CUDA graphs need a CUDA device")
            pair = [Replayed(model, inputs) for model in pair]
        quick = {"min_rounds": 4, "max_seconds": 0.02, "warmup_seconds": 0.0}
        steady = {"min_rounds": 10, "max_seconds": 1.5, "warmup_seconds": 0.5, "attempts": 2}
        options: dict[str, Any] = quick if self.tiny else steady
        runtime = "compile" if cell.runtime == "compile" else "torch"
        return compare_modules(
            pair[0], pair[1], (), inputs, runtime=runtime, device=self.device, **options
        )

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            with contextlib.suppress(Exception):  # a device that failed says so in the next cell
                torch.cuda.empty_cache()


def numbers(timed: Comparison, cut: Smaller) -> Row:
    """What a comparison says, and what was cut."""
    return {
        "before ms": timed.before.median_ms,
        "after ms": timed.after.median_ms,
        "measured": timed.ratio,
        "low": timed.ratio_low,
        "high": timed.ratio_high,
        "control": timed.control,
        "steady": timed.steady,
        "samples/s": timed.throughput,
        "peak bytes": (timed.peak_before_bytes, timed.peak_after_bytes),
        "params": cut.params,
        "macs": cut.macs,
    }


def main() -> None:
    """All cells that fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--out", type=Path, help="instead of results/gpu.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, a few rounds each")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --dry-run tries the benchmark")
    candidate.SECONDS = 0.05 if options.dry_run else CANDIDATE_SECONDS
    chosen = [getattr(options, k).split(",") for k in ("models", "dtypes", "runtimes")]
    for given, known in zip(chosen, (SHAPES, DTYPES, RUNTIMES), strict=True):
        for name in given:
            if name not in known:
                parser.error(f"'{name}' is none of {', '.join(known)}")
    os.environ["PRUNEC_CACHE"] = ""  # ops timed on another day would not be of this run
    bench = Bench(device, Budget(options.minutes * 60), options.dry_run)
    kept = options.out is not None or not options.dry_run
    for cell in plan(*chosen):
        row = bench.run(cell)
        words = [row[k] for k in ("skipped", "failed", "out of reach") if k in row]
        said = words[0] if words else f"{row['measured']:.2f}x"
        print(*dataclasses.astuple(cell), said, flush=True)
        row["bound"] = bound(row, bench.rows)
        if kept:
            found = {"peaks": bench.peaks, "cells": bench.rows}
            record("gpu", found, options.device, options.out)
    Console(width=200).print(table(bench.rows))
    print("\n".join(summary(bench.rows)))


if __name__ == "__main__":
    main()
