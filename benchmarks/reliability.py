"""What damaged and hostile artifacts, and kill -9, do to prunec: docs/reliability.md.

    python benchmarks/reliability.py [RUNS] [--jobs 2]

Runs the fuzzer RUNS times (10,000 by default), the attacks of tests/hostile and the kill tests, slow
ones included, and writes results/reliability.json and the page.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

from record import RESULTS, record
from reliability_table import write_table

ROOT = Path(__file__).parent.parent
ATTACKS, KILLS = "tests/hostile", "tests/test_kill.py"


def tests(path: str, *options: str) -> list[dict[str, Any]]:
    """One row a test function: how many cases it has, and how many of them passed."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "results.xml"
        subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", path, f"--junitxml={written}", *options],
            cwd=ROOT,
            check=False,  # what failed stands in the table
        )
        cases = xml.etree.ElementTree.parse(written).getroot().iter("testcase")
        rows: dict[tuple[str, str], collections.Counter[str]] = {}
        for case in cases:
            key = case.get("classname", ""), case.get("name", "").partition("[")[0]
            outcome = next((part.tag for part in case), "passed")
            rows.setdefault(key, collections.Counter())[outcome] += 1
    return [
        {"file": file, "test": name, "cases": counts.total(), "passed": counts["passed"]}
        for (file, name), counts in rows.items()
    ]


def main() -> None:
    """Run all three, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    command = [sys.executable, "benchmarks/fuzz.py", str(options.runs), "--jobs", str(options.jobs)]
    subprocess.run(command, cwd=ROOT, check=False)
    rows = {
        "fuzz": json.loads((RESULTS / "fuzz.json").read_text())["rows"],
        "attacks": tests(ATTACKS),
        "kills": tests(KILLS),
    }
    made = json.loads(record("reliability", rows).read_text())
    write_table(rows, made["date"], made["environment"])


if __name__ == "__main__":
    main()
