"""The field's headline trades on models that are at hand: smaller and faster, a tenth, and int8.

    python benchmarks/headlines.py [ROW ...] [--cache FOLDER]

DistilBERT's trade (40 % smaller, 60 % faster, 97 % kept), CoFi's (a tenth, 95 % kept), and pruning
with distillation and int8 (5 to 8 times smaller): one `compile` each, all parameters counted,
sizes of the ONNX files, speeds beside the original at a batch, quality on held-out data. Trained
models are kept in the folder. Writes results/headlines.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import byte_transformer
import corpus
import minilm
import other_text
import plain_digits
import torch
from recovery import batches as recovery_batches
from repair_subjects import CALIBRATION_WINDOWS, LENGTH
from rich.console import Console
from rich.table import Table
from rows import Rows
from torch import Tensor, nn
from trained_weights import kept

from prunec import compiler
from prunec.compiler.onnx_files.export import export_onnx
from prunec.compiler.onnx_files.session import OnnxSession

Predict = Callable[[Any], Tensor]  # outputs for the held-out inputs, a batch at a time
KEYS = ("row",)


@dataclasses.dataclass
class Subject:
    """A trained model, how it is compiled, and what its outputs are worth.

    `quality`: of a way to predict, higher is better; `unit`: what it is in. `batch`: of timings.
    """

    model: nn.Module
    example: dict[str, Tensor]
    calibration: list[Any]
    train: Any
    distill: dict[str, Any]
    quality: Callable[[Predict], float]
    unit: str
    batch: int


@dataclasses.dataclass(frozen=True)
class Headline:
    """What a row asks for. `int8`: how the result is quantised as well."""

    make: Callable[[pathlib.Path | None], Subject]
    target: compiler.Target
    rounds: int = 1
    int8: str | None = None
    widths: dict[str, Any] = dataclasses.field(default_factory=dict)


def _images(name: str, key: str, cache: pathlib.Path | None, **distill: Any) -> Subject:
    model = kept(cache, name, 0)
    images, labels = plain_digits.splits()["train"]
    held_out, truth = plain_digits.splits()["test"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train = [({key: images[part]}, labels[part]) for part in order.split(64)]

    def accuracy(predict: Predict) -> float:
        return float((predict({key: held_out}).argmax(-1) == truth).double().mean())

    calibration = [{key: images[part]} for part in order[:256].split(64)]
    options = {"learning_rate": 2e-3, "temperature": 2.0, **distill}
    example = {key: images[:4]}
    return Subject(model, example, calibration, train, options, accuracy, "accuracy", 256)


def digits_cnn(cache: pathlib.Path | None) -> Subject:
    """The plain CNN."""
    return _images("digits", "images", cache, steps=300)


def digits_vit(cache: pathlib.Path | None) -> Subject:
    """transformers' ViT."""
    return _images("vit", "pixel_values", cache, steps=400, learning_rate=1e-3)


def bytes_(cache: pathlib.Path | None) -> Subject:
    """The byte-level transformer; quality is the probability it gives a byte, on average (the
    geometric mean)."""
    model = kept(cache, "bytes", 0)
    held_out = byte_transformer.windows("held-out", 128, seed=0)
    calibration = byte_transformer.windows("train", CALIBRATION_WINDOWS, seed=1000)
    windows = byte_transformer.windows("train", 12 * 300, seed=2000)
    train = [({"ids": part[:, :-1]}, part[:, 1:]) for part in windows.split(12)]

    def probability(predict: Predict) -> float:
        logits = predict({"ids": held_out[:, :-1]})
        return float(2 ** -byte_transformer.bits_per_byte(logits, held_out))

    return Subject(
        model,
        {"ids": calibration[:2, :-1]},
        [{"ids": part[:, :-1]} for part in calibration.split(16)],
        train,
        {"steps": 300, "learning_rate": 1e-3, "temperature": 1.0},
        probability,
        "probability of a byte",
        16,
    )


def embedder(cache: pathlib.Path | None) -> Subject:
    """all-MiniLM-L6-v2; quality is the mean cosine with the original's embeddings, on another
    domain than it is trained on."""
    model, tokenizer = minilm.load()
    paragraphs = other_text.paragraphs()[:300]
    inputs = minilm.batches(paragraphs, tokenizer, batch_size=len(paragraphs), max_length=LENGTH)[0]
    with torch.no_grad():
        before = model(**inputs)
    texts = sorted(corpus.paragraphs("train")[:640], key=len)
    calibration = minilm.batches(texts, tokenizer, max_length=LENGTH)

    class Named:
        name = "minilm"

    train = recovery_batches(Named(), 0, few=False)  # type: ignore[arg-type]
    options = {"steps": len(train), "learning_rate": 3e-4}
    return Subject(
        model,
        {k: v[:4] for k, v in calibration[10].items()},
        calibration,
        train,
        options,
        lambda predict: float((predict(inputs) * before).sum(-1).mean()),
        "cosine",
        32,
    )


HEADLINES = {
    "bytes, 40 % smaller": Headline(bytes_, compiler.Target(params=0.6)),
    "CNN, a tenth": Headline(digits_cnn, compiler.Target(params=0.1)),
    "ViT, a tenth": Headline(digits_vit, compiler.Target(params=0.1), rounds=3),
    "CNN, half, int8": Headline(digits_cnn, compiler.Target(params=0.5), int8="static"),
    "ViT, half, int8": Headline(digits_vit, compiler.Target(params=0.5), int8="dynamic"),
    "MiniLM, 80 %, int8": Headline(embedder, compiler.Target(params=0.8), int8="dynamic"),
}


def measured(headline: Headline, cache: pathlib.Path | None) -> dict[str, Any]:
    """Compile, save, judge and time."""
    subject = headline.make(cache)
    result = compiler.compile(
        subject.model,
        kwargs=subject.example,
        target=headline.target,
        rounds=headline.rounds,
        calibration=subject.calibration,
        train=subject.train,
        measure=False,
        options={
            "distill": {"progress": False, **subject.distill},
            "allocate-widths": headline.widths,
        },
    )
    before, after = result.report.before, result.report.after
    row: dict[str, Any] = {"target": str(headline.target), "rounds": headline.rounds}
    row["parameters"] = after.params / before.params
    row["quality is"] = subject.unit
    row["quality before"] = subject.quality(_by_model(subject.model))
    row["quality after"] = subject.quality(_by_model(result.model))
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        place = pathlib.Path(scratch)
        original, small = place / "original.onnx", place / "small.onnx"
        export_onnx(subject.model, (), subject.example, original)
        result.export_onnx(small)
        sizes = {"original": original, "result": small}
        if headline.int8:
            sizes["int8"] = place / "int8.onnx"
            result.quantize_onnx(sizes["int8"], headline.int8)
            row["quality int8"] = subject.quality(_by_file(sizes["int8"]))
        for name, path in sizes.items():
            row[f"{name} bytes"] = path.stat().st_size
            if name != "original":
                files = {"onnx_before": original, "onnx_after": path}
                timed = result.measure("onnxruntime", subject.batch, attempts=3, **files)
                row[f"onnxruntime {name}"] = timed.ratio
    row["torch"] = result.measure("torch", subject.batch, attempts=3).ratio
    row["batch"] = subject.batch
    row["dense against reference"] = max(c.error or 0.0 for c in result.report.checks)
    return row


def _by_model(model: nn.Module) -> Predict:
    def predict(inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found = model.eval()(**inputs)
        return found if isinstance(found, Tensor) else found.logits

    return predict


def _by_file(path: pathlib.Path) -> Predict:
    session = OnnxSession(path)
    return lambda inputs: session.run(inputs)[0]


def table(rows: list[dict[str, Any]]) -> Table:
    """What each compile gave."""
    shown = Table(title="headline trades")
    for name in ("row", "target", "parameters", "quality", "kept", "smaller", "torch", "ORT"):
        shown.add_column(name)
    for r in rows:
        last = "int8" if "int8 bytes" in r else "result"
        after = r.get("quality int8", r["quality after"])
        shown.add_row(
            r["row"],
            r["target"] + (f", {r['rounds']} rounds" if r["rounds"] > 1 else ""),
            f"{r['parameters']:.1%}",
            f"{r['quality before']:.4f} -> {after:.4f} ({r['quality is']})",
            f"{after / r['quality before']:.1%}",
            f"{r['original bytes'] / r[f'{last} bytes']:.1f}x",
            f"{r['torch']:.2f}x",
            f"{r[f'onnxruntime {last}']:.2f}x",
        )
    return shown


def main() -> None:
    """The rows named, or all; those that were there stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(HEADLINES))
    parser.add_argument("--cache", type=pathlib.Path, help="folder to keep trained weights in")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in HEADLINES]
    if unknown:
        parser.error(f"no row '{unknown[0]}'; there are {', '.join(HEADLINES)}")
    rows = Rows("headlines", KEYS, resume=True)
    for name in options.rows or list(HEADLINES):
        rows.drop(name)
        rows.add({"row": name, **measured(HEADLINES[name], options.cache)})
    Console(width=150).print(table(rows.found))


if __name__ == "__main__":
    main()
