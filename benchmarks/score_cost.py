"""What scoring wide layers costs: CPU seconds and peak memory of second-order scores and of the
default pipeline, where convolutions have many taps and layers many inputs.

    python benchmarks/score_cost.py [NAME ...]

Each runs in a process of its own, on one thread. Memory is the process's peak above what it held
before scoring; the score's own limit for moments is printed beside it. Writes
results/score_cost.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
from record import RESULTS, record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.passes.calibration.reduction import MOMENTS

BATCHES, ROWS = 12, 64
Subject = tuple[nn.Module, list[Tensor]]


def pitch_net() -> Subject:
    """A pitch tracker of convolutions of 512 and 64 taps, 0.5M parameters (CREPE's smallest size:
    Kim et al., 2018, figure 1)."""
    widths, parts = (1, 128, 16, 16, 16, 32, 64), []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        taps, step = (512, 4) if i == 0 else (64, 1)
        parts += [
            nn.ZeroPad1d((taps // 2 - step // 2, taps // 2 - (step + 1) // 2)),
            nn.Conv1d(a, b, taps, step),
            nn.ReLU(),
            nn.BatchNorm1d(b),
            nn.MaxPool1d(2),
        ]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 4, 360), nn.Sigmoid())
    return model, [torch.randn(ROWS, 1, 1024) for _ in range(BATCHES)]


def wide_convolution() -> Subject:
    """1024 channels before a convolution of 64 taps: 65,536 inputs of a row."""
    model = nn.Sequential(
        nn.Conv1d(8, 1024, 3), nn.ReLU(), nn.Conv1d(1024, 16, 64), nn.ReLU(), nn.Flatten()
    )
    return model, [torch.randn(8, 8, 96) for _ in range(4)]


def wide_linear() -> Subject:
    """A linear layer of 65,536 inputs."""
    model = nn.Sequential(nn.Linear(32, 65_536), nn.ReLU(), nn.Linear(65_536, 16))
    return model, [torch.randn(256, 32) for _ in range(4)]


def taps_of_8192() -> Subject:
    """128 channels before a convolution of 64 taps: 8,192 inputs."""
    model = nn.Sequential(
        nn.Conv1d(8, 128, 3), nn.ReLU(), nn.Conv1d(128, 64, 64), nn.ReLU(), nn.Flatten()
    )
    return model, [torch.randn(16, 8, 128) for _ in range(4)]


def score(subject: Subject) -> dict[str, Any]:
    """SecondOrderScore alone."""
    model, batches = subject
    graph = compiler.capture(model.eval(), (batches[0],))
    before, began = _resident(), time.process_time()
    steps = [
        passes.SecondOrderScore(progress=False),
        passes.PruneChannels(ratio=0.5),
    ]
    result = compiler.PassManager(steps).run(graph, batches)
    details = result.report.passes[0].details
    return {
        "CPU seconds": time.process_time() - began,
        "peak MB": (_resident() - before) / 2**20,
        "approximated": "; ".join(sorted(set(details["approximated"].values()))),
    }


def pipeline(subject: Subject) -> dict[str, Any]:
    """The default recipe at half of the parameters, with calibration data and no training."""
    model, batches = subject
    before, began = _resident(), time.process_time()
    result = compiler.compile(
        model.eval(),
        (batches[0],),
        target=compiler.Target(params=0.5),
        calibration=batches,
        measure=False,
    )
    assert result.verify().passed
    return {
        "CPU seconds": time.process_time() - began,
        "peak MB": (_resident() - before) / 2**20,
        "parameters": f"{result.report.before.params:,} -> {result.report.after.params:,}",
    }


SUBJECTS: dict[str, Callable[[], Subject]] = {
    f.__name__: f for f in (pitch_net, taps_of_8192, wide_convolution, wide_linear)
}
JOBS: dict[str, Callable[[Subject], dict[str, Any]]] = {"score": score, "pipeline": pipeline}
RUNS = (("pipeline", "pitch_net"), *(("score", name) for name in SUBJECTS))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the named subjects, all by default, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SUBJECTS])
    parser.add_argument("--worker", nargs=2)
    asked = parser.parse_args()
    if asked.worker:
        job, name = asked.worker
        torch.set_num_threads(1)
        torch.manual_seed(0)
        print(json.dumps(JOBS[job](SUBJECTS[name]())))
        return
    rows = []
    for job, name in RUNS:
        if asked.names and name not in asked.names:
            continue
        command = [sys.executable, str(Path(__file__)), "--worker", job, name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        about = " ".join((SUBJECTS[name].__doc__ or "").split())
        row = {"job": job, "subject": name, "about": about}
        rows.append(row | json.loads(done.stdout.splitlines()[-1]))
    table = Table(title=f"one thread; moments of a layer take {MOMENTS / 2**20:.0f} MB at most")
    columns = ("job", "subject", "CPU seconds", "peak MB", "approximated", "parameters")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    Console(width=150).print(table)
    if not asked.names:
        print(record("score_cost", rows, path=RESULTS / "score_cost.json"))


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
