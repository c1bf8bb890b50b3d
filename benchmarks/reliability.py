"""What damaged and hostile artifacts, and kill -9, do to prunec: docs/reliability.md.

    python benchmarks/reliability.py [CASES] [--kills 100] [--no-fuzz]

Runs the fuzzer (10,000 cases by default; `--no-fuzz` takes the results there are), all attacks of
tests/hostile, and saves that are killed, and writes results/reliability.json and the page.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

from record import RESULTS, record
from reliability_table import write_table

ROOT = Path(__file__).parent.parent
CASES, KILLS = 10_000, 100


def attacks() -> list[dict[str, Any]]:
    """One row a test of tests/hostile, slow ones included: how many attacks, how many held."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "results.xml"
        subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", "tests/hostile", f"--junitxml={written}"],
            cwd=ROOT,
            check=False,  # what failed stands in the table
        )
        rows: dict[tuple[str, str], collections.Counter[str]] = {}
        for case in xml.etree.ElementTree.parse(written).getroot().iter("testcase"):
            file = case.get("classname", "").rpartition(".")[2]
            key = file, case.get("name", "").partition("[")[0]
            outcome = next((part.tag for part in case if part.tag != "properties"), "passed")
            rows.setdefault(key, collections.Counter())[outcome] += 1
    return [
        {"file": file, "test": name, "cases": counts.total(), "passed": counts["passed"]}
        for (file, name), counts in rows.items()
    ]


def kills(moments: int) -> list[dict[str, Any]]:
    """One row a way of exchanging and a place: what was there after each kill."""
    rows = []
    for how in ("renameat2", "journal"):
        for what in ("replace", "first"):
            with tempfile.TemporaryDirectory() as scratch:
                script = str(ROOT / "tests" / "killed_saves.py")
                run = subprocess.run(
                    [sys.executable, script, scratch, str(moments), how, what],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            said = json.loads(run.stdout.splitlines()[-1])
            rows.append({"how": how, "place": what, **said})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run all three, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="?", type=int, default=CASES)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--no-fuzz", action="store_true", help="take results/fuzz.json")
    options = parser.parse_args()
    if not options.no_fuzz:
        command = [sys.executable, "benchmarks/fuzz.py", str(options.cases)]
        subprocess.run(command, cwd=ROOT, check=False)
    fuzz = json.loads((RESULTS / "fuzz.json").read_text())
    rows = {
        "fuzz": fuzz["rows"],
        "fuzz date": fuzz["date"],
        "attacks": attacks(),
        "kills": kills(options.kills),
    }
    made = json.loads(record("reliability", rows).read_text())
    write_table(rows, made["date"], made["environment"])


if __name__ == "__main__":
    main()
