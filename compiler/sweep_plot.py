"""The picture of a sweep."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from .errors import PlanError

if TYPE_CHECKING:
    from .sweep import Sweep, SweepRow


def draw(sweep: Sweep, path: pathlib.Path) -> pathlib.Path:
    """Quality against measured speed-up, with its interval; the front is joined by a line. The
    ending of `path` says the format. Raises PlanError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlanError(
            "the picture of a sweep needs matplotlib; install it, or prunec[bench]."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in sweep.rows if r.speedup is not None]
    judged = any(r.evaluate is not None for r in rows)

    def quality(r: SweepRow) -> float:
        return (r.evaluate if judged else r.error) or 0.0

    figure, axes = pyplot.subplots(figsize=(6, 4))
    front = sorted(sweep.front(), key=lambda r: r.speedup or 0)
    axes.plot([r.speedup or 0 for r in front], [quality(r) for r in front], "-", color="tab:blue")
    for r in rows:
        assert r.speedup is not None
        spread: Any = [[r.speedup - (r.low or r.speedup)], [(r.high or r.speedup) - r.speedup]]
        colour = "tab:blue" if r in front else "tab:gray"
        axes.errorbar([r.speedup], [quality(r)], xerr=spread, fmt="o", color=colour, capsize=3)
        axes.annotate(
            r.asked, (r.speedup, quality(r)), textcoords="offset points", xytext=(6, 6), fontsize=8
        )
    if judged and sweep.original is not None:
        axes.axhline(sweep.original, color="tab:gray", linestyle=":", linewidth=1)
    if not judged:
        axes.set_yscale("log")
    axes.set_xlabel(f"measured speed-up, {sweep.runtime} on {sweep.device}")
    axes.set_ylabel("evaluate" if judged else "relative squared error of the outputs")
    axes.set_title(sweep.model)
    axes.margins(x=0.15, y=0.15)
    axes.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
