"""Benchmark results as JSON files beside the benchmarks, each with its hardware and date."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from prunec.compiler.measure.environment import describe

RESULTS = Path(__file__).parent / "results"


def record(name: str, rows: Any, device: str = "cpu") -> Path:
    """Write `results/NAME.json`: rows, the environment they were measured in, the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    data = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "environment": describe(device),
        "rows": rows,
    }
    path.write_text(json.dumps(data, indent=1, default=str) + "\n")
    return path
