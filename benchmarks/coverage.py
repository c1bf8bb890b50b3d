"""How much of what exists prunec compiles: every architecture of transformers at a tiny
configuration, and timm's and torchvision's families where these are installed.

    python benchmarks/coverage.py [NAME ...] [--jobs 2] [--no-onnx] [--resume] [--recipe default]

Each model is captured, half of every prunable dimension is cut at random, and what comes out is
compared: dense against masked (zero mask), against the original over kept entries (restricted),
under a permutation of every dimension, against the user's own model run eagerly with everything
outside `plan.slices()` zeroed, module against graph, ONNX against torch. Failures are listed.
With `--recipe default` each is compiled by the default recipe instead, at half of its parameters,
with a few batches made like its inputs: what share keeps its class is what users see.
Writes results/coverage.json, or results/coverage_default.json, and docs/coverage.md; with names,
only their rows are made anew.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import architectures
import torch
import vision_models
from coverage_table import write_table
from examination import TEXT_LENGTH, one
from record import RESULTS, record

from prunec.compiler.inputs import synthetic_inputs

SECONDS = {"half": 120, "default": 300}  # a model that takes longer is listed as too slow
FILES = {"half": "coverage", "default": "coverage_default"}
CHUNK = 8  # models a process takes before it makes room for a fresh one


class TooSlowError(Exception):
    """A model took longer than its share of time."""


def work(names: list[str], onnx: bool, recipe: str) -> None:
    """A worker: one JSON line an architecture on stdout."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    synthetic_inputs.TEXT_LENGTH = TEXT_LENGTH

    def late(*_: Any) -> None:
        raise TooSlowError(f"more than {SECONDS[recipe]} s")

    signal.signal(signal.SIGALRM, late)
    for name in names:
        signal.alarm(SECONDS[recipe])
        row = one(name, onnx, recipe)
        signal.alarm(0)
        print(json.dumps({"architecture": name, **row}), flush=True)


def main() -> None:
    """Examine the named architectures, all by default, in worker processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    parser.add_argument("--recipe", choices=tuple(FILES), default="half")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.names, not options.no_onnx, options.recipe)
        return
    names = options.names or [*architectures.architectures(), *vision_models.names()]
    stem = FILES[options.recipe]
    partial = RESULTS / f"{stem}.partial.jsonl"
    rows: dict[str, Any] = {}
    if options.resume and partial.exists():
        for line in partial.read_text().splitlines():
            row = json.loads(line)
            rows[row["architecture"]] = row
    waiting = [n for n in names if n not in rows]
    with partial.open("a" if options.resume else "w") as log:
        for row in _run(waiting, options.jobs, options.no_onnx, options.recipe):
            rows[row["architecture"]] = row
            log.write(json.dumps(row) + "\n")
            log.flush()
            said = row.get("skipped") or "; ".join(row["failures"]) or "ok"
            print(f"{len(rows):4}/{len(names)} {row['architecture']:32} {said[:140]}", flush=True)
    known = RESULTS / f"{stem}.json"
    if options.names and known.exists():  # the others stay as they were
        before = json.loads(known.read_text())["rows"]
        rows = {row["architecture"]: row for row in before} | rows
    ordered = sorted(rows.values(), key=lambda row: row["architecture"])
    record(stem, ordered)
    write_page()
    partial.unlink()


def write_page() -> None:
    """docs/coverage.md from the results of both recipes, of which one may be missing."""
    made = {
        recipe: json.loads((RESULTS / f"{stem}.json").read_text())
        for recipe, stem in FILES.items()
        if (RESULTS / f"{stem}.json").exists()
    }
    rows = {recipe: found["rows"] for recipe, found in made.items()}
    runs = {recipe: _run_of(found) for recipe, found in made.items()}
    half, default = rows.get("half", []), rows.get("default", [])
    write_table(half, runs.get("half", ""), default, runs.get("default", ""))


def _run_of(made: dict[str, Any]) -> str:
    machine = made["environment"]
    return (
        f"Last run {made['date']} on {machine['device_name']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}."
    )


def _run(names: list[str], jobs: int, no_onnx: bool, recipe: str) -> Iterator[dict[str, Any]]:
    """Rows as they come, from `jobs` processes at a time; one that dies loses its model only."""
    waiting = collections.deque(names)
    found: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def serve() -> None:
        while waiting:
            part = [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]
            command = [sys.executable, __file__, "--worker", *part]
            command += ["--no-onnx"] if no_onnx else []
            command += ["--recipe", recipe]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
                assert worker.stdout is not None
                rows = [line for line in worker.stdout if line.startswith("{") and _tell(line)]
            if worker.returncode and len(rows) < len(part):
                lost = {"architecture": part[len(rows)], "failures": [f"exit {worker.returncode}"]}
                found.put(lost)
                waiting.extend(part[len(rows) + 1 :])
        found.put(None)

    def _tell(line: str) -> bool:
        found.put(json.loads(line))
        return True

    for _ in range(jobs):
        threading.Thread(target=serve, daemon=True).start()
    running = jobs
    while running:
        row = found.get()
        if row is None:
            running -= 1
        else:
            yield row


if __name__ == "__main__":
    main()
