"""`prunec bench`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from ..capture.batch import resize_batch
from ..capture.batches import to_device
from ..capture.examples import copied_call
from ..cause import cause
from ..console import PlainTable
from ..device import check_device
from ..errors import MeasureError
from ..measure.model_timing import compare_modules
from ..measure.onnx_timing import compare_onnx_files, fixed_batch
from ..measure.timing import Comparison
from ..sources.model import Source
from .open_model import as_graph, open_model

ATTEMPTS = 3  # at a steady timing
BATCHES = (1, 32)  # unless others are asked for, or the files are fixed at one


def bench_command(
    before: str,
    after: str,
    runtime: str,
    device: str,
    batches: Sequence[int] | None,
    inputs: list[str] | None,
    console: Console,
) -> None:
    """Time two models, artifacts or ONNX files at some batch sizes and print the table.

    Raises MeasureError for a pair that cannot be compared: a file and a model, models of different
    inputs, a batch that one of the two is not made for.
    """
    files = [name.endswith(".onnx") for name in (before, after)]
    if any(files) and not all(files):
        raise MeasureError(
            "one side is an ONNX file and the other is not; compare like with like: export both, "
            "or pass --runtime onnxruntime with two models."
        )
    check_device(device, computes=not all(files))  # onnxruntime may have one that torch has not
    if all(files):
        own = fixed_batch(before, after)
        batches = batches or (BATCHES if own is None else (own,))
        found = [compare_onnx_files(before, after, batch, device=device) for batch in batches]
    else:
        a, b = _opened(before, after, inputs)
        found = [_timed(a, b, runtime, device, batch) for batch in batches or BATCHES]
        before, after = _titled(a), _titled(b)
    console.print(comparison_table(before, after, found))


def _opened(before: str, after: str, inputs: list[str] | None) -> tuple[Source, Source]:
    """Both models; an artifact of the other one's class as that class, which runs faster."""
    a = open_model(before, inputs)
    b = open_model(after, inputs, like=a.model)
    return (open_model(before, inputs, like=b.model) if as_graph(a) else a), b


def _titled(source: Source) -> str:
    return source.name + (", as a graph" if as_graph(source) else "")


def _timed(a: Source, b: Source, runtime: str, device: str, batch: int) -> Comparison:
    """Both on A's arguments, which each has to run before either is timed."""
    args, kwargs = to_device((tuple(a.args), dict(a.kwargs)), device)
    args, kwargs = resize_batch(args, kwargs, batch)
    for source in (a, b):
        source.model.to(device).eval()
        try:
            with torch.inference_mode():
                own, named = copied_call(args, kwargs)
                source.model(*own, **named)
        except Exception as error:  # whatever the model's own code raises
            raise MeasureError(
                f"{source.name} does not run at batch {batch} on the inputs of {a.name} "
                f"({cause(error)}): compare models that take the same inputs, or say others by "
                "--input or --batch."
            ) from error
    return compare_modules(
        a.model,
        b.model,
        a.args,
        a.kwargs,
        runtime=runtime,
        device=device,
        batch=batch,
        attempts=ATTEMPTS,
    )


def comparison_table(before: str, after: str, rows: Sequence[Comparison]) -> Table:
    """A: before, B: after; ratio above 1 means B is faster."""
    first = rows[0]
    table = PlainTable(title=f"A {before}\nB {after}", title_justify="left")
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
    threads = f"{first.threads} thread" + "s" * (first.threads != 1)
    # The inputs of an ONNX file do not say what it computes in.
    table.caption = ", ".join(filter(None, (first.device, first.dtype, threads)))
    table.caption_justify = "left"
    return table
