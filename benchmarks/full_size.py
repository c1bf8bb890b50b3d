"""BERT-base and ResNet-50 at full size with random weights, beside torch-pruning.

    python benchmarks/full_size.py

Half of the heads, hidden units and channels go. Prints exactness, seconds from model to dense and
speed; for torch-pruning the seconds of the same cut, and whether its result runs. Writes
results/full_size.json.
"""

from __future__ import annotations

import time
from typing import Any

import peer
import torch
from record import record
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification

from prunec import compiler, passes


def bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """BERT-base, 12 layers, random weights; 64 tokens."""
    ids = torch.randint(0, 30000, (2, 64))
    return BertModel(BertConfig()).eval(), {"input_ids": ids, "attention_mask": ids * 0 + 1}


def resnet() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """ResNet-50, random weights; 224 x 224 images."""
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
    return model, {"pixel_values": torch.randn(2, 3, 224, 224)}


def ours(name: str, model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Cut with prunec: stage times, errors, speed."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    graph = compiler.capture(model, kwargs=inputs)
    seconds["capture + inference"] = time.perf_counter() - began
    cuts: list[Any] = [passes.PruneChannels(ratio=0.5)]
    if name == "bert-base":
        cuts.insert(0, passes.PruneHeads(ratio=0.5))

    def note(step: Any, outcome: Any, took: float) -> None:
        seconds[step.name] = took

    began = time.perf_counter()
    pipeline = [passes.MagnitudeScore(), *cuts, passes.SparseToDense()]
    result = compiler.PassManager(pipeline, note).run(graph)
    seconds["passes, proof included"] = time.perf_counter() - began
    # the cut alone, as a tool without a proof would time it
    began = time.perf_counter()
    from prunec.compiler.rewrite.rewrite import rewrite

    rewrite(graph, result.plan.combined())
    seconds["rewrite + slicing"] = time.perf_counter() - began
    for batch in (1, 8):
        result.measure("torch", batch, max_seconds=12.0)
        result.measure("onnxruntime", batch, max_seconds=12.0)
    report = result.report
    return {
        "tool": "prunec",
        "model": name,
        "parameters": report.after.params / report.before.params,
        "macs": report.after.macs / report.before.macs,
        "runs": type(result.model).__name__,
        "errors": {c.name: c.error for c in report.checks},
        "speed": {f"{c.runtime} {c.batch}": round(c.ratio, 2) for c in report.latency},
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
    }


def torch_pruning(name: str, model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same cut with torch-pruning, told the head counts and the outputs to leave alone."""
    before = sum(p.numel() for p in model.parameters())
    seconds = peer.prune(model, inputs, 0.5)
    try:
        with torch.no_grad():
            model(**inputs)
        runs = "runs (attributes patched by hand)" if name == "bert-base" else "runs"
    except Exception as error:
        runs = f"fails: {str(error).splitlines()[0][:80]}"
    return {
        "tool": peer.name(),
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()) / before,
        "runs": runs,
        "errors": "not checked by the tool",
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
    }


def main() -> None:
    """Run both tools on both models."""
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, make in (("bert-base", bert), ("resnet-50", resnet)):
        rows.append(ours(name, *make()))
        try:
            rows.append(torch_pruning(name, *make()))
        except Exception as error:
            rows.append({"tool": "torch-pruning", "model": name, "runs": f"fails: {error}"[:120]})
    record("full_size", rows)
    table = Table(title="half of the heads, hidden units and channels")
    columns = ("tool", "model", "parameters", "macs", "runs", "seconds", "speed", "errors")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    Console(width=170).print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(
            f"{k}: {v:.1e}" if isinstance(v, float) and 0 < v < 1e-3 else f"{k}: {v}"
            for k, v in value.items()
        )
    return f"{value:.3f}" if isinstance(value, float) else str(value or "-")


if __name__ == "__main__":
    main()
