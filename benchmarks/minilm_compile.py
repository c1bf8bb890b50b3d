"""all-MiniLM-L6-v2 compressed and recovered on unlabelled text: what quality costs at each speed.

    python benchmarks/minilm_compile.py [ROW ...]

Rows: heads -1/3 with hidden units -50 %, raw, repaired and trained; then targets of speed, measured
in onnxruntime at a batch of 32. The texts are docstrings, but for the first repaired row with some
words replaced by others of the vocabulary; in the long row docstrings of all installed packages.
Judged on docstrings of modules that training did not see, and on licences and descriptions of data
sets. Writes results/minilm.json, row by row; rows that are not named stay as they were.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import corpus
import minilm
import other_text
import torch
from rich.console import Console
from rich.table import Table
from rows import Row, Rows

from prunec import compiler, passes

HELD_OUT = 400
LENGTH = 128
CALIBRATION = 20  # batches, of 32 paragraphs
STEPS, LONG = 300, 1000
DISTILL = {"learning_rate": 3e-4, "embedding_loss": "mse+cosine", "progress": False}
RATIO_ROW = "heads -1/3, hidden -50 %"
# Each row: its name, the speed-up asked for, the steps of training, whether texts are varied.
ROWS: dict[str, tuple[str, float | None, int, bool]] = {
    "raw": (f"{RATIO_ROW}, raw cut", None, 0, True),
    "plain": (f"{RATIO_ROW}, repaired on docstrings as they are", None, 0, False),
    "repaired": (f"{RATIO_ROW}, repaired", None, 0, True),
    "trained": (f"{RATIO_ROW}, repaired, {STEPS} steps", None, STEPS, True),
    "2": (f"speedup=2, {STEPS} steps", 2.0, STEPS, True),
    "long": (f"speedup=2, {LONG} steps", 2.0, LONG, True),
    "1.5": (f"speedup=1.5, {STEPS} steps", 1.5, STEPS, True),
}


def domains() -> dict[str, list[str]]:
    """The texts that results are judged on."""
    return {
        "held-out": corpus.paragraphs("held-out")[:HELD_OUT],
        "other": other_text.paragraphs()[:HELD_OUT],
    }


def training_batches(
    tokenizer: Any, steps: int, varied: bool = True, size: int = 32
) -> list[dict[str, torch.Tensor]]:
    """Batches of paragraphs of like length (less padding), in a shuffled order."""
    texts = corpus.paragraphs("train")
    if steps > STEPS:
        texts = corpus.with_installed([t for judged in domains().values() for t in judged])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(texts), generator=generator).tolist()
    chosen = [texts[i] for i in order[: size * steps]]
    if varied:
        chosen = corpus.varied(chosen, minilm.words(tokenizer))
    batches = minilm.batches(sorted(chosen, key=len), tokenizer, size, LENGTH)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


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
        options={"allocate-widths": {"round_to": 8}, "distill": {"steps": steps, **DISTILL}},
    )


def measured(model: Any, result: Any, tokenizer: Any) -> Row:
    """Sizes, quality and speed of one result."""
    with tempfile.TemporaryDirectory() as scratch:
        result.save(Path(scratch) / "a", onnx=True, measure=("onnxruntime",))
    result.measure("torch", 32)
    report = result.report
    found: Row = {
        "parameters": report.after.params / report.before.params,
        "macs": report.after.macs / report.before.macs,
    }
    for domain, texts in domains().items():
        quality = minilm.fidelity(model, result.model, texts, tokenizer)
        found |= {f"{domain} {k.replace('_', ' ')}": v for k, v in quality.items()}
    found |= {f"{c.runtime} batch {c.batch}": c.ratio for c in report.latency}
    found["zero mask"] = next(c.error for c in report.checks if c.name == "zero mask")
    found["onnx parity"] = report.onnx.max_rel_error
    return found


def compressed(name: str, model: Any, tokenizer: Any) -> Any:
    """The result of one row."""
    _, speedup, steps, varied = ROWS[name]
    train = training_batches(tokenizer, max(STEPS, steps), varied)
    example = minilm.batches(corpus.paragraphs("train")[:4], tokenizer, max_length=LENGTH)[0]
    calibration = train[:CALIBRATION]
    if speedup is not None:
        return by_speed(model, example, calibration, train, steps, speedup)
    repair = [] if name == "raw" else [passes.Reconstruct()]
    recovery = [passes.Distill(train, steps=steps, **DISTILL)] if steps else []
    return by_ratio(model, example, calibration, [*repair, *recovery])


def table(rows: list[Row]) -> Table:
    """Every row."""
    shown = Table(title=f"all-MiniLM-L6-v2, judged on {HELD_OUT} paragraphs of each kind")
    columns = [k for k in rows[0] if k not in ("zero mask", "onnx parity", "seconds")]
    for column in columns:
        shown.add_column(column)
    for entry in rows:
        shown.add_row(*(v if isinstance(v, str) else f"{v:.3f}" for v in map(entry.get, columns)))
    return shown


def main() -> None:
    """Run the rows named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row '{unknown[0]}'; there are {', '.join(ROWS)}")
    model, tokenizer = minilm.load()
    rows = Rows("minilm", ("row",), resume=bool(options.rows))
    labels = {label for label, *_ in ROWS.values()}
    rows.found = [r for r in rows.found if r["row"] in labels]  # others are of an older benchmark
    for name in options.rows or ROWS:
        label = ROWS[name][0]
        rows.drop(label)
        rows.add({"row": label, **measured(model, compressed(name, model, tokenizer), tokenizer)})
    Console(width=170).print(table(rows.found))


if __name__ == "__main__":
    main()
