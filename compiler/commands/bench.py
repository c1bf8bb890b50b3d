"""`prunec bench`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..errors import MeasureError
from ..measure.model_timing import compare_modules
from ..measure.onnx_timing import compare_onnx_files
from ..measure.timing import Comparison
from .open_model import open_model

ATTEMPTS = 3  # at a steady timing


def bench_command(
    before: str,
    after: str,
    runtime: str,
    device: str,
    batches: Sequence[int],
    inputs: list[str] | None,
    console: Console,
) -> None:
    """Time two models, artifacts or ONNX files at some batch sizes and print the table."""
    files = [name.endswith(".onnx") for name in (before, after)]
    if any(files) and not all(files):
        raise MeasureError(
            "one side is an ONNX file and the other is not; compare like with like: export both, "
            "or pass --runtime onnxruntime with two models."
        )
    if all(files):
        found = [compare_onnx_files(before, after, batch, device=device) for batch in batches]
    else:
        a = open_model(before, inputs)
        b = open_model(after, inputs)
        found = [
            compare_modules(
                a.model.to(device).eval(),
                b.model.to(device).eval(),
                a.args,
                a.kwargs,
                runtime=runtime,
                device=device,
                batch=batch,
                attempts=ATTEMPTS,
            )
            for batch in batches
        ]
    console.print(comparison_table(before, after, found))


def comparison_table(before: str, after: str, rows: Sequence[Comparison]) -> Table:
    """A: before, B: after; ratio above 1 means B is faster."""
    first = rows[0]
    table = Table(title=f"A {before}\nB {after}", title_justify="left")
    peaks = any(c.peak_before_bytes is not None for c in rows)
    columns = ["runtime", "batch", "A ms", "B ms", "A / B", "95 %", "A / A", "B samples/s"]
    for column in [*columns, *(["peak MiB A / B"] if peaks else [])]:
        table.add_column(column, justify="right" if column != "runtime" else "left")
    for c in rows:
        cells = [
            c.runtime,
            str(c.batch),
            f"{c.before.median_ms:.2f}",
            f"{c.after.median_ms:.2f}",
            f"{c.ratio:.2f}x",
            f"{c.ratio_low:.2f}-{c.ratio_high:.2f}",
            f"{c.control:.2f}" + ("" if c.steady else " (not steady)"),
            f"{c.throughput:,.0f}",
        ]
        both = (c.peak_before_bytes or 0, c.peak_after_bytes or 0)
        cells += [" / ".join(f"{peak / 2**20:.0f}" for peak in both)] if peaks else []
        table.add_row(*cells)
    table.caption = f"{first.device}, {first.dtype}, {first.threads} threads"
    table.caption_justify = "left"
    return table
