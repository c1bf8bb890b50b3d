"""Speed-ups asked for, predicted and measured, and what other budgets give.

    python benchmarks/speedup.py [MODEL ...] [--runtimes torch,onnxruntime] [--resume] [--quick]

1.5x, 2x and 3x of a CNN whose time and parameters lie in different layers, of a BERT-base and of a
ResNet-50, random weights: a target of speed, budgets of 1/s of the parameters and of the MACs, and
torch-pruning cut to the MACs that the target of speed came to. Widths go by magnitude and the
knapsack. What is measured here comes after the compile, in rounds of its own. Where the machine
was busy the row says so. Rows are kept as they come; writes results/speedup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cost
import torch
from record import RESULTS, record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler.cause import cause
from prunec.compiler.measure.model_timing import compare_modules
from prunec.compiler.measure.timing import Comparison

ASKED = (1.5, 2.0, 3.0)
RUNTIMES = ("torch", "onnxruntime")
METHODS = ("speedup", "params", "macs", "torch-pruning")  # the last one reads the first one's row
NEAR = 0.05  # a speed this close to the one asked for is met
OTHERS = 0.5  # a load this much above the threads of this process is other work
PARTIAL = RESULTS / "speedup.partial.jsonl"
KEYS = ("model", "runtime", "asked", "method")
Row = dict[str, Any]


class UnevenCnn(nn.Module):
    """(N, 3, 32, 32) -> (N, 10). Nine tenths of the time are in the first three convolutions, nine
    tenths of the parameters in the layer that reads the last map."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fourth = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.wide = nn.Linear(4 * width * 16, 16 * width)
        self.head = nn.Linear(16 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = torch.relu(self.third(nn.functional.max_pool2d(x, 2)))
        x = torch.relu(self.fourth(nn.functional.max_pool2d(x, 4)))
        return self.head(torch.relu(self.wide(x.flatten(1))))


def uneven_cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    """The CNN and two images."""
    return UnevenCnn(), {"x": torch.randn(2, 3, 32, 32)}


# How each is made, and the batch it is timed at.
MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, dict[str, Tensor]]], int]] = {
    "uneven_cnn": (uneven_cnn, 16),
    "bert_base": (cost.bert_base, 1),
    "resnet_50": (cost.resnet_50, 1),
}


class Subject:
    """One model, and what its rows are made of."""

    def __init__(self, name: str, seconds: float) -> None:
        torch.manual_seed(0)
        make, self.batch = MODELS[name]
        self.name, self.seconds = name, seconds
        model, self.inputs = make()
        self.model = model.eval()
        self._counted: dict[tuple[str, float], tuple[nn.Module, Row]] = {}

    def row(self, runtime: str, asked: float, method: str, rows: Iterable[Row]) -> Row:
        """One measurement; what fails is a row that says why."""
        row: Row = dict(zip(KEYS, (self.name, runtime, asked, method), strict=True))
        began = time.perf_counter()
        try:
            made = {
                "speedup": lambda: self.compiled(
                    compiler.Target(speedup=asked, runtime=runtime, batch=self.batch)
                ),
                "torch-pruning": lambda: self.by_peer(_macs_of(row, rows)),
            }.get(method, lambda: self.counted(method, asked))
            model, found = made()
            row |= found
            row |= timed(self.compare(model, runtime))
        except Exception as error:  # whatever a compile, an export or the other tool raise
            row["failed"] = cause(error)[:300]
        row["seconds"] = round(time.perf_counter() - began, 1)
        return row

    def compiled(self, target: compiler.Target) -> tuple[nn.Module, Row]:
        """By prunec: what it predicted and measured on the way, and what is left."""
        result = compiler.compile(
            self.model,
            target=target,
            kwargs=self.inputs,
            calibration=[],
            options={"allocate-widths": {"method": "knapsack"}},
            measure=False,
        )
        report = result.report
        aim = report.aim if target.measured else None
        return result.model, {
            "predicted": aim.predicted if aim else None,
            "in the loop": aim.measured if aim else None,
            "params": report.after.params / report.before.params,
            "macs": report.after.macs / report.before.macs,
            "notes": [note for note in report.notes if "left out" not in note],
        }

    def counted(self, kind: str, asked: float) -> tuple[nn.Module, Row]:
        """A budget of 1/s; the same for all runtimes."""
        if (kind, asked) not in self._counted:
            target = compiler.Target(**{kind: 1 / asked})
            self._counted[kind, asked] = self.compiled(target)
        return self._counted[kind, asked]

    def by_peer(self, share: float) -> tuple[nn.Module, Row]:
        """torch-pruning at this share of the MACs."""
        import peer

        model = peer.prune_to_macs(self.model, self.inputs, share)
        sizes = [sum(p.numel() for p in m.parameters()) for m in (model, self.model)]
        macs = peer.macs(model, self.inputs) / peer.macs(self.model, self.inputs)
        return model, {"params": sizes[0] / sizes[1], "macs": macs}

    def compare(self, model: nn.Module, runtime: str) -> Comparison:
        """Beside the original."""
        return compare_modules(
            self.model, model, (), self.inputs,
            runtime=runtime, batch=self.batch, attempts=3, max_seconds=self.seconds,
        )  # fmt: skip


def _macs_of(row: Row, rows: Iterable[Row]) -> float:
    wanted = [row[k] for k in KEYS[:3]]
    for other in rows:
        if [other[k] for k in KEYS] == [*wanted, "speedup"] and "macs" in other:
            return other["macs"]
    raise ValueError("there is no model for that speed, so no MACs to be equal to")


def timed(found: Comparison) -> Row:
    """The speed of a row, and whether other work ran."""
    load = found.versions.get("load")
    return {
        "batch": found.batch,
        "before ms": found.before.median_ms,
        "measured": found.ratio,
        "low": found.ratio_low,
        "high": found.ratio_high,
        "control": found.control,
        "load": load,
        "busy": not found.steady or (load is not None and load > found.threads + OTHERS),
    }


def met(row: Row) -> bool:
    """Whether a speed is within 5 % of the one asked for."""
    return "measured" in row and abs(row["measured"] / row["asked"] - 1) <= NEAR


def summary(rows: list[Row]) -> list[str]:
    """For each runtime how many of the targets of speed were met, of all and of the quiet ones."""
    lines: list[str] = []
    for runtime in dict.fromkeys(r["runtime"] for r in rows):
        own = [r for r in rows if r["runtime"] == runtime and r["method"] == "speedup"]
        quiet = [r for r in own if not r.get("busy", False)]
        lines.append(
            f"{runtime}: {sum(map(met, own))} of {len(own)} targets of speed within {NEAR:.0%}; "
            f"on a quiet machine {sum(map(met, quiet))} of {len(quiet)}"
        )
    return lines


def table(rows: list[Row]) -> Table:
    """A row for each model, runtime and speed: the target's numbers, then what others gave."""
    shown = Table(title="speed-ups asked for and measured", title_justify="left")
    names = ("model", "runtime", "asked", "predicted", "measured", "95 %", "A/A", "load", "MACs")
    others = ("params=1/s", "macs=1/s", "torch-pruning, same MACs")
    for column in (*names, *others):
        shown.add_column(column)
    by_key: Mapping[tuple[Any, ...], Row] = {tuple(r[k] for k in KEYS): r for r in rows}
    for key in dict.fromkeys(tuple(r[k] for k in KEYS[:3]) for r in rows):
        own = by_key.get((*key, "speedup"), {})
        interval = f"{own['low']:.2f}-{own['high']:.2f}" if "low" in own else "-"
        shown.add_row(
            key[0], key[1], f"{key[2]:g}x", _number(own.get("predicted")), _speed(own), interval,
            _number(own.get("control")), _number(own.get("load")),
            f"{own['macs']:.0%}" if "macs" in own else "-",
            *(_speed(by_key.get((*key, method), {})) for method in METHODS[1:]),
        )  # fmt: skip
    shown.caption = "! other work ran, or the original against itself was off by more than 5 %"
    return shown


def _speed(row: Row) -> str:
    if "failed" in row:
        return f"no: {row['failed'][:60]}"
    return f"{row['measured']:.2f}x{' !' if row['busy'] else ''}" if "measured" in row else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def read(path: pathlib.Path) -> list[Row]:
    """The rows of an earlier run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    models: Iterable[str], runtimes: Iterable[str], speeds: Iterable[float], rows: list[Row],
    keep: Callable[[Row], None], seconds: float = 6.0,
) -> list[Row]:  # fmt: skip
    """The rows there are and those that were missing, each given to `keep` as it comes."""
    rows = list(rows)
    for name in models:
        subject: Subject | None = None
        cells = [(r, s, m) for s in speeds for r in runtimes for m in METHODS]
        for cell in cells:
            if any(tuple(r[k] for k in KEYS) == (name, *cell) for r in rows):
                continue
            subject = subject or Subject(name, seconds)
            rows.append(subject.row(*cell, rows))
            keep(rows[-1])
    return rows


def main() -> None:
    """All cells, or those named, or with --quick one of the CNN."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--asked", default=",".join(map(str, ASKED)), help="speed-ups")
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    parser.add_argument("--quick", action="store_true", help="the CNN at 2x in torch, not recorded")
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        parser.error(f"no model '{unknown[0]}'; there are {', '.join(MODELS)}")
    models, runtimes = options.models or list(MODELS), options.runtimes.split(",")
    speeds = [float(s) for s in options.asked.split(",")]
    if options.quick:
        models, runtimes, speeds = ["uneven_cnn"], ["torch"], [2.0]
    had = read(PARTIAL) if options.resume and not options.quick else []
    if not had and not options.quick:
        PARTIAL.unlink(missing_ok=True)

    def keep(row: Row) -> None:
        print(json.dumps(row), flush=True)
        if not options.quick:
            RESULTS.mkdir(exist_ok=True)
            with PARTIAL.open("a") as file:
                file.write(json.dumps(row) + "\n")

    with tempfile.TemporaryDirectory(prefix="prunec-") as fresh:
        os.environ["PRUNEC_CACHE"] = fresh  # ops timed on another day would not be of this run
        rows = run(models, runtimes, speeds, had, keep, seconds=2.0 if options.quick else 6.0)
    Console(width=170).print(table(rows))
    print("\n".join(summary(rows)))
    if not options.quick:
        record("speedup", rows)
        PARTIAL.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
