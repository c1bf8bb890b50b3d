"""Damaged artifacts, opened: how each case ended, counted.

python benchmarks/fuzz.py [N] [--seed S] [--case NUMBER] [--jobs 2]

A case is drawn from its number and the seed: what is damaged, how, whether the checksums are made
to fit, and by which entry point it is opened, each in a process of its own. `--case` opens one
again and says what was done. Ends with 1 where something ran, hung, raised anything but a clear
error, or gave other outputs although the checksums were left alone.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
from fork_server import CLEAR, DIFFERENT, OUTCOMES, SAME, Call, ForkServer, Outcome
from fuzz_mutations import Damage, damage
from fuzz_subjects import build
from record import record

CASES = 10_000
SEED = 0
ALLOWED = {True: (CLEAR, SAME, DIFFERENT), False: (CLEAR, SAME)}  # by whether checksums fit


@dataclasses.dataclass(frozen=True)
class Row:
    case: Damage
    outcome: Outcome

    @property
    def wrong(self) -> bool:
        return self.outcome.kind not in ALLOWED[self.case.fitted]


def one(server: ForkServer, subjects: Path, scratch: Path, number: int, seed: int) -> Row:
    """Damage and open one case."""
    home = scratch / str(number)
    home.mkdir()
    try:
        case = damage(subjects, home / "artifact", number, seed)
        return Row(case, server.run(Call(case.entry, case.subject, home / "artifact")))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run(numbers: Iterable[int], seed: int, jobs: int, subjects: Path, scratch: Path) -> list[Row]:
    """All cases, by `jobs` servers; in order of their numbers."""
    parts = [list(numbers)[i::jobs] for i in range(jobs)]

    def some(part: list[int]) -> Iterator[Row]:
        with ForkServer(subjects) as server:
            for number in part:
                yield one(server, subjects, scratch, number, seed)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rows = [row for rows in pool.map(lambda part: list(some(part)), parts) for row in rows]
    return sorted(rows, key=lambda row: row.case.number)


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """A row per outcome, with and without fitted checksums; then one per exception and place."""
    counts = collections.Counter((r.outcome.kind, r.case.fitted) for r in rows)
    table: list[dict[str, Any]] = [
        {"outcome": kind, "fitted": counts[kind, True], "not fitted": counts[kind, False]}
        for kind in OUTCOMES
    ]
    wrong: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        if row.wrong:
            what = row.outcome.text.partition(":")[0][:60] or row.outcome.kind
            key = (row.outcome.kind, what, row.outcome.where)
            wrong.setdefault(key, []).append(row.case.number)
    for (kind, what, where), cases in sorted(wrong.items(), key=lambda item: -len(item[1])):
        row = {"wrong": kind, "type": what, "place": where, "count": len(cases)}
        table.append(row | {"cases": cases[:5]})
    return table


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'outcome':22} {'fitted':>8} {'not fitted':>11}")
    for row in rows:
        if "outcome" in row:
            print(f"{row['outcome']:22} {row['fitted']:8} {row['not fitted']:11}")
        else:
            what = f"{row['wrong']}: {row['type']} [{row['place']}]"
            print(f"{row['count']:6}  {what} {row['cases']}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="?", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--case", type=int, help="open this one only and say what was done")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        subjects, scratch = Path(home) / "subjects", Path(home) / "scratch"
        scratch.mkdir()
        build(subjects)
        if asked.case is not None:
            (row,) = run([asked.case], asked.seed, 1, subjects, scratch)
            print(row.case, row.outcome, sep="\n")
            return int(row.wrong)
        rows = run(range(asked.cases), asked.seed, asked.jobs, subjects, scratch)
    table = summary(rows)
    seconds = round(time.monotonic() - start)
    show(table)
    print(f"{asked.cases} cases, seed {asked.seed}, {seconds} s")
    about = {"cases": asked.cases, "seed": asked.seed, "seconds": seconds}
    record("fuzz", [about, *table])
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
