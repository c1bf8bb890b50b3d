"""The main job on models that come with packages: a real sentence embedder, a CNN trained here.

    make demo

Nothing is downloaded but packages. Ends with the tables and the places of the artifacts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import corpus
import digits
import minilm
from minilm_compile import training_batches
from rich.console import Console

from prunec import compiler, passes

STEPS = 60  # of 32 paragraphs
CALIBRATION = 10  # batches
HELD_OUT = 400


def compress_embedder(out: Path, console: Console, steps: int) -> compiler.Result:
    """all-MiniLM-L6-v2: a third of the heads and half of the hidden units go; repaired and trained
    on unlabelled text, judged on text of other modules."""
    model, tokenizer = minilm.load()
    train = training_batches(tokenizer, steps, varied=False)
    calibration = train[:: max(1, len(train) // CALIBRATION)]  # all along, so that losses compare
    few = corpus.paragraphs("train")[:4]
    graph = compiler.capture(model, kwargs=minilm.batches(few, tokenizer, max_length=64)[0])
    pipeline = compiler.PassManager(
        [
            passes.SecondOrderScore(),
            passes.PruneHeads(ratio=1 / 3),
            passes.PruneChannels(ratio=0.5, include="hidden", round_to=8),
            passes.SparseToDense(),
            passes.Reconstruct(),
            passes.Distill(train, steps=steps, learning_rate=3e-4),
        ],
        callback=lambda step, result, seconds: console.print(
            f"  {step.name:<16} {seconds:6.1f} s  {result.summary}", highlight=False
        ),
    )
    result = pipeline.run(graph, calibration)
    held_out = corpus.paragraphs("held-out")[:HELD_OUT]
    for name, value in minilm.fidelity(model, result.model, held_out, tokenizer).items():
        result.report.quality[name.replace("_", " ")] = (1.0, value)
    finish(result, out, console, tokenizer=tokenizer)
    return result


def compress_cnn(out: Path, console: Console) -> compiler.Result:
    """A residual CNN with grouped and depthwise convolutions, trained here, at half its widths."""
    model = digits.trained()
    images, _ = digits.tensors("train")
    graph = compiler.capture(model, (images[:8],))
    pipeline = compiler.PassManager(
        [
            passes.SecondOrderScore(),
            passes.PruneChannels(ratio=0.5),
            passes.SparseToDense(),
            passes.Reconstruct(),
            passes.Distill(digits.batches("train"), epochs=4, learning_rate=3e-3, alpha=0.5),
        ],
        callback=lambda step, outcome, seconds: console.print(
            f"  {step.name:<16} {seconds:6.1f} s  {outcome.summary}", highlight=False
        ),
    )
    result = pipeline.run(graph, list(images[:256].split(64)))
    result.report.quality["test accuracy"] = (digits.accuracy(model), digits.accuracy(result.model))
    finish(result, out, console)
    return result


def finish(result: compiler.Result, out: Path, console: Console, **companions: object) -> None:
    """Time both runtimes, write PyTorch and ONNX, print the table and where they are."""
    result.measure_all(("torch",), max_seconds=3.0)
    place = result.save(out, onnx=True, measure=("onnxruntime",), **companions)
    result.report.print(console)
    console.print(f"artifact: {place}  (PyTorch and model.onnx)", highlight=False)


def main() -> None:
    """Run both and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--steps", type=int, default=STEPS, help="distillation steps")
    options = parser.parse_args()
    console = Console(width=100)
    began = time.perf_counter()
    console.rule("all-MiniLM-L6-v2: heads -1/3, hidden units -50 %")
    compress_embedder(options.out / "minilm", console, options.steps)
    console.rule("digits CNN: every width -50 %")
    compress_cnn(options.out / "digits", console)
    console.print(f"done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
