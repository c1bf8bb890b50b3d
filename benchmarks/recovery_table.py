"""The tables and the plot of the recovery benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rows import Row, means, measures

KEY = ("model", "seed", "width", "start", "data", "recipe")
GROUP = KEY[2:]
# What each model is judged by in the plot, and how far the best can be from it.
AXES = {
    "digits": ("KL", "KL to the original"),
    "bytes": ("KL", "KL to the original"),
    "minilm": ("mean cosine", "1 - cosine with the original"),
}
COLOURS = {
    "raw": "#999999",
    "repaired": "#0072b2",
    "3 rounds": "#009e73",
    "gradual": "#cc79a7",
    "scratch": "#d55e00",
    "torch-pruning": "#e69f00",
}


def grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows of each cell over its seeds, in their order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in GROUP), []).append(row)
    return found


def print_tables(rows: Sequence[Row], steps: Mapping[str, int], console: Console) -> None:
    """One table for each model."""
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        names = measures(own, KEY)
        table = Table(title=f"{model}: {steps[model]} steps")
        for column in (*GROUP, "parameters", *names, "seeds"):
            table.add_column(column)
        for group, cells in grouped(own).items():
            kept = sum(r["parameters"] for r in cells) / len(cells)
            values = means(cells, names).values()
            table.add_row(*group, f"{kept:.1%}", *(f"{v:.3f}" for v in values), str(len(cells)))
        console.print(table)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each model and width: a dot for each way to train, the lower the nearer to the
    original; filled dots with all the data, hollow ones with 128 labelled samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    cells = [row for row in rows if row["start"] != "original"]
    cells.sort(key=lambda row: (list(AXES).index(row["model"]), list(COLOURS).index(row["start"])))
    panels = list(dict.fromkeys((row["model"], row["width"]) for row in cells))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.3 * len(panels), 6.4), squeeze=False, layout="constrained"
    )
    for axis, (model, width) in zip(axes[0], panels, strict=True):
        own = [r for r in cells if (r["model"], r["width"]) == (model, width)]
        measure, label = AXES[model]
        ways = list(dict.fromkeys((r["start"], r["recipe"]) for r in own))
        for place, (start, recipe) in enumerate(ways):
            for data in dict.fromkeys(r["data"] for r in own):
                same = [
                    r for r in own if (r["start"], r["recipe"], r["data"]) == (start, recipe, data)
                ]
                if not same:
                    continue
                value = means(same, [measure])[measure]
                few = data == "128 labelled"
                colour = COLOURS[start]
                axis.plot(
                    1 - value if "cosine" in measure else value,
                    -place,
                    "o",
                    color=colour,
                    markerfacecolor="white" if few else colour,
                )
        names = [f"{s}, {'no training' if r == '-' else r}" for s, r in ways]
        axis.set_yticks([-i for i in range(len(ways))], names, fontsize=7)
        if measure == "KL":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(label, fontsize=8)
        kept = next(r["parameters"] for r in own)
        axis.set_title(f"{model}, widths {width}\n{kept:.1%} of the parameters", fontsize=8)
        axis.grid(alpha=0.3)
        axis.tick_params(axis="x", labelsize=7)
    figure.suptitle("after the same steps of training (KL in nats); hollow: 128 images", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
