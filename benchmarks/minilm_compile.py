"""all-MiniLM-L6-v2 compressed and recovered on unlabelled text: what quality costs at each speed.

    python benchmarks/minilm_compile.py [--steps 150] [--rows raw repaired ratio 1.5 2]

Rows: heads -1/3 with hidden units -50 %, raw, repaired and trained; measured speed-up targets.
Judged on docstrings of
modules that training did not see. Writes results/minilm.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import corpus
import minilm
import torch
from record import record
from rich.console import Console
from rich.table import Table

from prunec import compiler, passes

HELD_OUT = 400
LENGTH = 128
CALIBRATION = 20  # batches, of 32 paragraphs
RATIO_ROW = "heads -1/3, hidden -50 %"


def training_batches(tokenizer: Any, steps: int, size: int = 32) -> list[dict[str, torch.Tensor]]:
    """Batches of paragraphs of like length (less padding), in a shuffled order."""
    texts = corpus.paragraphs("train")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(texts), generator=generator).tolist()
    chosen = sorted((texts[i] for i in order[: size * steps]), key=len)
    batches = minilm.batches(chosen, tokenizer, size, LENGTH)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def recover(train: list[Any], steps: int) -> passes.Distill:
    """The recovery every row gets."""
    return passes.Distill(train, steps=steps, learning_rate=5e-4, embedding_loss="mse+cosine")


def by_ratio(model: torch.nn.Module, example: Any, calibration: list[Any], last: Any) -> Any:
    """A third of the heads and half of the hidden units."""
    graph = compiler.capture(model, kwargs=example)
    pipeline = [
        passes.SecondOrderScore(),
        passes.PruneHeads(ratio=1 / 3),
        passes.PruneChannels(ratio=0.5, include="hidden", round_to=8),
        passes.SparseToDense(),
    ]
    return compiler.PassManager([*pipeline, *last]).run(graph, calibration)


def by_speed(
    model: torch.nn.Module,
    example: Any,
    calibration: list[Any],
    train: Any,
    steps: int,
    speedup: float,
) -> Any:
    """`compile` to a measured speed-up in onnxruntime at batch 32."""
    target = compiler.Target(speedup=speedup, runtime="onnxruntime", batch=32)
    return compiler.compile(
        model,
        kwargs=example,
        target=target,
        calibration=calibration,
        train=train,
        measure=False,
        options={
            "allocate-widths": {"round_to": 8},
            "distill": {"steps": steps, "learning_rate": 5e-4},
        },
    )


def row(name: str, model: Any, result: Any, texts: list[str], tokenizer: Any) -> dict[str, Any]:
    """Sizes, quality and speed of one result."""
    quality = minilm.fidelity(model, result.model, texts, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        result.save(Path(scratch) / "a", onnx=True, measure=("onnxruntime",))
    result.measure("torch", 32)
    report = result.report
    speeds = {f"{c.runtime} batch {c.batch}": round(c.ratio, 3) for c in report.latency}
    return {
        "row": name,
        "parameters": report.after.params / report.before.params,
        "macs": report.after.macs / report.before.macs,
        **quality,
        **speeds,
        "zero mask": next(c.error for c in report.checks if c.name == "zero mask"),
        "onnx parity": report.onnx.max_rel_error,
    }


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", nargs="+", default=["raw", "repaired", "ratio", "1.5", "2"])
    options = parser.parse_args()
    console = Console(width=140)
    model, tokenizer = minilm.load()
    train = training_batches(tokenizer, options.steps)
    example = minilm.batches(corpus.paragraphs("train")[:4], tokenizer, max_length=LENGTH)[0]
    calibration = train[:CALIBRATION]
    texts = corpus.paragraphs("held-out")[:HELD_OUT]
    rows: list[dict[str, Any]] = []
    for name in options.rows:
        if name == "raw":
            label = f"{RATIO_ROW}, raw cut"
            result = by_ratio(model, example, calibration, [])
        elif name == "repaired":
            label = f"{RATIO_ROW}, repaired"
            result = by_ratio(model, example, calibration, [passes.Reconstruct()])
        elif name == "ratio":
            label = f"{RATIO_ROW}, repaired, {options.steps} steps"
            last = [passes.Reconstruct(), recover(train, options.steps)]
            result = by_ratio(model, example, calibration, last)
        else:
            label = f"speedup={name}, {options.steps} steps"
            result = by_speed(model, example, calibration, train, options.steps, float(name))
        rows.append(row(label, model, result, texts, tokenizer))
        console.print(rows[-1])
        record("minilm", rows)
    table = Table(title=f"all-MiniLM-L6-v2, judged on {HELD_OUT} held-out paragraphs")
    columns = [k for k in rows[0] if k not in ("zero mask", "onnx parity")]
    for column in columns:
        table.add_column(column)
    for entry in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.3f}" for v in map(entry.get, columns)))
    console.print(table)


if __name__ == "__main__":
    main()
