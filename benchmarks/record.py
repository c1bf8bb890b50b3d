"""Benchmark results as JSON files beside the benchmarks, each with its hardware and date."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from prunec.compiler.measure.environment import describe

RESULTS = Path(__file__).parent / "results"


def record(name: str, rows: Any, device: str = "cpu", path: Path | None = None) -> Path:
    """Write `results/NAME.json`, or `path`: rows, the environment they were measured in, the
    date."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "environment": describe(device),
        "rows": rows,
    }
    path.write_text(json.dumps(data, indent=1, default=str) + "\n")
    return path
