"""A residual CNN with grouped and depthwise convolutions on digits, at half its widths.

    python benchmarks/digits_compile.py [--seeds 3]

Trained in the run, cut, repaired, recovered, timed through onnxruntime at batch 256. Writes
results/digits.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import digits
from record import record
from rich.console import Console
from rich.table import Table

from prunec import compiler, passes


def one(seed: int, ratio: float) -> dict[str, Any]:
    """One seed: accuracy before, after the raw cut, recovered; speed; errors."""
    model = digits.trained(seed)
    images, _ = digits.tensors("train")
    graph = compiler.capture(model, (images[:8],))
    calibration = list(images[:256].split(64))
    cut = [passes.SecondOrderScore(), passes.PruneChannels(ratio=ratio), passes.SparseToDense()]
    raw = compiler.PassManager(cut).run(graph, calibration)
    repair = [*cut, passes.Reconstruct()]
    repaired = compiler.PassManager(repair).run(graph, calibration)
    train = digits.batches("train", seed=seed)
    recover = passes.Distill(train, epochs=4, learning_rate=3e-3, alpha=0.5, seed=seed)
    result = compiler.PassManager([*repair, recover]).run(graph, calibration)
    with tempfile.TemporaryDirectory() as scratch:
        onnx = result.export_onnx(Path(scratch) / "model.onnx")
        speed = result.measure("onnxruntime", 256)
    eager = result.measure("torch", 256)
    report = result.report
    return {
        "seed": seed,
        "parameters": report.after.params / report.before.params,
        "macs": report.after.macs / report.before.macs,
        "accuracy before": digits.accuracy(model),
        "accuracy raw cut": digits.accuracy(raw.model),
        "accuracy repaired": digits.accuracy(repaired.model),
        "accuracy recovered": digits.accuracy(result.model),
        "onnxruntime batch 256": speed.ratio,
        "torch batch 256": eager.ratio,
        "zero mask": next(c.error for c in report.checks if c.name == "zero mask"),
        "onnx parity": onnx.max_rel_error,
    }


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.5)
    options = parser.parse_args()
    rows = [one(seed, options.ratio) for seed in range(options.seeds)]
    record("digits", rows)
    table = Table(title=f"digits CNN, every width -{options.ratio:.0%}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.1e}" if 0 < v < 1e-3 else f"{v:.3g}" for v in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
