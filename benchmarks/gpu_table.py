"""What the GPU benchmark says: its table, what bounds the time, what was met, what was not."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

NEAR = 0.05  # a speed this close to the one asked for is met
PAYS = 0.8  # of what the MACs promise; where a cut gives less, what bounds the time is named
IDLE = 0.3  # a device idle for more of a call than this waits for launches
Row = dict[str, Any]


def bound(row: Row, rows: list[Row]) -> str:
    """Where a cut pays less than its MACs: what the time of the result goes into. The share of an
    eager call that the device is idle is known where the same cell ran as a CUDA graph."""
    if "measured" not in row or row["measured"] * row["macs"] >= PAYS:
        return ""
    same = ("model", "phase", "dtype", "many", "asked")
    alike = [r for r in rows if all(r[k] == row[k] for k in same) and "measured" in r]
    replayed = next((r["after ms"] for r in alike if r["runtime"] == "graph"), math.inf)
    idle = 1 - replayed / row["after ms"]
    if row["runtime"] == "torch" and idle > IDLE:
        return f"launches: the device is idle {idle:.0%} of a call"
    compute, memory = row["of peak compute"], row["of peak memory"]
    if max(compute, memory) < IDLE:
        return f"small kernels: {compute:.0%} of peak compute, weights read at {memory:.0%} of peak"
    if memory > compute:
        return f"memory: weights read at {memory:.0%} of peak"
    return f"compute: {compute:.0%} of peak"


def table(rows: list[Row]) -> Table:
    """A row for each cell that ran, or failed."""
    shown = Table(title="GPU: original against smaller", title_justify="left")
    for column in (
        "model", "phase", "dtype", "runtime", "batch", "asked", "predicted", "measured", "95 %",
        "A/A", "before ms", "after ms", "MACs", "parameters", "branches", "bound by",
    ):  # fmt: skip
        shown.add_column(column)
    for row in rows:
        if "skipped" in row:
            continue
        cells = [*_name(row)[:4], str(row["batch"]), _asked(row)]
        if "measured" not in row:
            said = "out of reach" if "out of reach" in row else "failed"
            shown.add_row(*cells, "-", said, *["-"] * 7, "said below")
            continue
        predicted = row.get("predicted")
        shown.add_row(
            *cells,
            f"{predicted:.2f}" if predicted else "-",
            f"{row['measured']:.2f}x",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['control']:.2f}{'' if row['steady'] else ' !'}",
            f"{row['before ms']:.3f}",
            f"{row['after ms']:.3f}",
            f"{row['macs']:.0%}",
            f"{row['params']:.0%}",
            f"-{row['branches dropped']}" if row.get("branches dropped") else "",
            bound(row, rows),
        )
    return shown


def _name(row: Row) -> list[str]:
    return [row["model"], row["phase"], row["dtype"], row["runtime"], f"batch {row['batch']}"]


def _asked(row: Row) -> str:
    return f"{row['asked']:g}x" if row["asked"] else "half"


def summary(rows: list[Row]) -> list[str]:
    """How many cells ran, how many targets were met, and why the others have no numbers."""
    ran = [r for r in rows if "measured" in r]
    asked = [r for r in ran if r["asked"]]
    met = [r for r in asked if abs(r["measured"] / r["asked"] - 1) <= NEAR]
    skipped = [r for r in rows if "skipped" in r]
    failed, beyond = (sum(key in r for r in rows) for key in ("failed", "out of reach"))
    lines = [
        f"{len(ran)} cells ran, {failed} failed, {beyond} targets were out of reach, "
        f"{len(skipped)} cells did not fit into the time"
    ]
    if asked:
        lines.append(f"{len(met)} of {len(asked)} targets of speed within {NEAR:.0%}")
    for row in rows:
        for word in ("failed", "out of reach", "skipped"):
            if word in row:
                lines.append(f"{word}: {' '.join(_name(row))} {_asked(row)}: {row[word]}")
        lines += [f"note: {' '.join(_name(row))} {_asked(row)}: {n}" for n in row.get("notes", ())]
    return lines
