"""The tables and the plot of the repair benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Cell = dict[str, Any]
MEASURES = {
    "digits": ("accuracy", "KL"),
    "bytes": ("bits per byte", "KL"),
    "minilm": ("mean cosine", "spearman", "neighbour overlap 10"),
}
TITLES = {
    "digits": "CNN on digits, 90,250 parameters",
    "bytes": "byte-level transformer on docstrings",
    "minilm": "all-MiniLM-L6-v2, calibrated on docstrings, judged on licences and data sets",
}
COLOURS = {"raw": "#999999", "BN": "#e69f00", "bias": "#56b4e9", "least squares": "#0072b2"}


def print_tables(rows: Sequence[Cell], console: Console) -> None:
    """One table for each model: a row for each score and repair, a column for each width."""
    for model, measures in MEASURES.items():
        chosen = [row for row in rows if row["model"] == model]
        if not chosen:
            continue
        original = [row for row in chosen if row["tool"] == "original"]
        values = ", ".join(f"{m} {_text(m, [row[m] for row in original])}" for m in measures)
        table = Table(title=f"{TITLES[model]}; original: {values}", caption=", ".join(measures))
        cut = [row for row in chosen if row["tool"] != "original"]
        widths = _in_order(cut, "width")
        for column in ("tool", "entries chosen by", "repair", *widths):
            table.add_column(column)
        previous = None
        for tool, score, repair in dict.fromkeys((c["tool"], c["score"], c["repair"]) for c in cut):
            if previous not in (None, (tool, score)):
                table.add_section()
            previous = (tool, score)
            line = [
                _entry(
                    [
                        c
                        for c in cut
                        if (c["tool"], c["score"], c["repair"]) == (tool, score, repair)
                        and c["width"] == width
                    ],
                    measures,
                )
                for width in widths
            ]
            table.add_row(tool, score, repair, *line)
        console.print(table)


def _entry(cells: Sequence[Cell], measures: Sequence[str]) -> str:
    return " / ".join(_text(m, [c[m] for c in cells]) for m in measures) if cells else "-"


def _text(measure: str, values: Sequence[float]) -> str:
    """Mean and, over several seeds, standard deviation; accuracy in percent."""
    factor, digits = (100, 1) if measure == "accuracy" else (1, 3)
    mean = statistics.fmean(values) * factor
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ±{statistics.stdev(values) * factor:.{digits}f}"


def _in_order(rows: Sequence[Cell], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def plot(rows: Sequence[Cell], path: Path) -> None:
    """A grid: a line of panels for each measure, a column for each score; a curve for each repair,
    over the width kept. The peer's curves are dotted. The legend says the rest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (model, measure)
        for model, measures in MEASURES.items()
        for measure in measures
        if any(row["model"] == model for row in rows)
    ]
    scores = _in_order([row for row in rows if row["tool"] == "prunec"], "score")
    figure, grid = pyplot.subplots(
        len(panels),
        len(scores),
        figsize=(2.9 * len(scores) + 0.8, 2.0 * len(panels) + 0.8),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for i, (model, measure) in enumerate(panels):
        for j, score in enumerate(scores):
            axes = grid[i, j]
            here = [r for r in rows if r["model"] == model and r["score"] == score]
            for tool, marker, style in (("prunec", "o", "-"), ("torch-pruning", "x", ":")):
                for repair, colour in COLOURS.items():
                    mine = [r for r in here if (r["tool"], r["repair"]) == (tool, repair)]
                    widths = _in_order(mine, "width")  # as the columns of the table
                    if not mine:
                        continue
                    means = [
                        statistics.fmean(r[measure] for r in mine if r["width"] == w)
                        for w in widths
                    ]
                    (curve,) = axes.plot(widths, means, style, marker=marker, color=colour)
                    handles.setdefault(f"{tool}, {repair}", curve)
            original = [r[measure] for r in rows if (r["model"], r["tool"]) == (model, "original")]
            if measure == "KL":
                axes.set_yscale("log")
            elif original:
                level = statistics.fmean(original)
                handles.setdefault(
                    "original", axes.axhline(level, color="black", linewidth=0.8, linestyle="--")
                )
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=7)
            if j == 0:
                axes.set_ylabel(f"{model}\n{measure}", fontsize=8)
            if i == 0:
                axes.set_title(f"entries chosen by: {score}", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
