"""What a cut costs without training: {score} x {repair} x {width}, on three trained models.

    python benchmarks/repair.py [--models digits bytes minilm] [--seeds 3] [--quick] [--resume]

Rows: which entries go (random, magnitude, Taylor, OBS) and how the rest is repaired on unlabelled
data (not at all, batch norms measured again, new biases, least squares); columns: the width kept.
Judged on held-out inputs, beside torch-pruning at the same widths. Writes results/repair.json,
cell by cell, and results/repair.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import repair_peer
import torch
from record import RESULTS, record
from repair_subjects import SUBJECTS, Subject, Width
from repair_table import plot, print_tables
from rich.console import Console

from prunec import compiler, passes
from prunec.compiler.pass_class import Pass, PassResult

SCORES = {
    "random": "RandomScore",
    "magnitude": "MagnitudeScore",
    "Taylor": "TaylorScore",
    "OBS": "SecondOrderScore",
}
KEY = ("model", "seed", "tool", "score", "repair", "width")
Cell = dict[str, Any]


@dataclasses.dataclass
class Once(Pass):
    """A score computed the first time, and given again to every further pipeline."""

    score: Any

    name: ClassVar[str] = "once"
    provides: ClassVar[tuple[str, ...]] = ("scores", "errors")

    def run(self, state: Any) -> PassResult:
        if not hasattr(self, "_known"):
            self.score.run(state)
            self._known = state.scores, state.errors
        state.scores, errors = self._known
        state.errors = errors or {}
        return PassResult(False, self.score.name)


def repairs(subject: Subject) -> dict[str, list[Any]]:
    """The passes behind SparseToDense, by the name of the row."""
    rows: dict[str, list[Any]] = {"raw": []}
    if subject.has_batch_norm:
        rows["BN"] = [passes.RecalibrateBatchNorm()]
    rows["bias"] = [passes.Reconstruct(weights=False, progress=False)]
    rows["least squares"] = [passes.Reconstruct(progress=False)]
    return rows


def pipeline(subject: Subject, score: Any, width: Width, repair: list[Any]) -> list[Any]:
    """Cut the subject to this width and repair it."""
    steps = [score, passes.PruneChannels(ratio=1 - width.channels, include=subject.kinds)]
    if subject.heads:
        steps.append(passes.PruneHeads(ratio=1 - width.heads))
    return [*steps, passes.SparseToDense(), *repair]


def cells(
    subject: Subject,
    seed: int,
    known: set[tuple[Any, ...]],
    scores: Sequence[str] = tuple(SCORES),
) -> Iterator[Cell]:
    """Every cell of one trained model that is not known yet, prunec's and the peer's."""
    parameters = sum(p.numel() for p in subject.model.parameters())
    began = time.perf_counter()

    def cell(tool: str, score: str, repair: str, width: str, model: Any) -> Cell:
        nonlocal began
        made: Cell = dict(
            zip(KEY, (subject.name, seed, tool, score, repair, width), strict=True),
            parameters=sum(p.numel() for p in model.parameters()) / parameters,
            seconds=time.perf_counter() - began,
            **subject.judge(model),
        )
        began = time.perf_counter()
        return made

    def missing(*key: str) -> bool:
        return (subject.name, seed, *key) not in known

    if missing("original", "-", "-", "1"):
        yield cell("original", "-", "-", "1", subject.model)
    graph = subject.capture()
    for score in scores:
        name = SCORES[score]
        options = {"seed": seed} if score == "random" else {}
        once = Once(getattr(passes, name)(**options))
        for width in subject.widths:
            for repair, last in repairs(subject).items():
                if missing("prunec", score, repair, width.name):
                    steps = pipeline(subject, once, width, last)
                    result = compiler.PassManager(steps).run(graph, subject.calibration)
                    yield cell("prunec", score, repair, width.name, result.model)
    for score in repair_peer.SCORES:
        if score == "Taylor" and subject.labelled is None:
            continue
        for width in subject.widths:
            if missing("torch-pruning", score, "raw", width.name):
                pruned = repair_peer.prune(subject, score, width, seed)
                yield cell("torch-pruning", score, "raw", width.name, pruned)
                if subject.has_batch_norm:
                    repair_peer.recalibrate(pruned, subject)
                    yield cell("torch-pruning", score, "BN", width.name, pruned)


def work(
    name: str,
    seed: int,
    cache: Path | None,
    quick: bool,
    known: set[tuple[Any, ...]],
    scores: Sequence[str],
    found: Any,
) -> None:
    """In a process of its own: train, measure, hand over cell by cell."""
    torch.set_num_threads(1)
    subject = SUBJECTS[name](seed, cache)
    if quick:
        subject = dataclasses.replace(subject, widths=subject.widths[:1])
    for cell in cells(subject, seed, known, scores):
        found.put(cell)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run what is asked for, saving every cell; then print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--quick", action="store_true", help="the first width only")
    parser.add_argument("--resume", action="store_true", help="keep the cells there are")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    console = Console(width=150)
    path = RESULTS / "repair.json"
    rows: list[Cell] = []
    if options.resume and path.exists():
        rows = json.loads(path.read_text())["rows"]
    known = {tuple(row[k] for k in KEY) for row in rows}
    # The slowest first, so that the processes end together.
    tasks = [
        (name, seed, options.cache, options.quick, known, options.scores)
        for name in sorted(options.models, key=list(SUBJECTS).index, reverse=True)
        for seed in range(options.seeds)
    ]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(options.jobs, spawn) as pool:
        found = manager.Queue()
        futures = [pool.submit(work, *task, found) for task in tasks]
        while not (all(f.done() for f in futures) and found.empty()):
            try:
                rows.append(found.get(timeout=1))
            except queue.Empty:
                continue
            record("repair", rows)
            console.print(*(_short(v) for v in rows[-1].values()), highlight=False)
        for future in futures:
            future.result()
    print_tables(rows, console)
    plot(rows, RESULTS / "repair.png")


if __name__ == "__main__":
    main()
