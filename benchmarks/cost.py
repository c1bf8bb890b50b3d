"""What compiling costs: seconds by stage, how they grow with depth, and peak memory.

    python benchmarks/cost.py [NAME ...]

Half of every dimension is cut, heads and head widths excepted. Each model runs in a process of
its own, once to warm the machine's caches and then timed; torch-pruning cuts the same share where
it finishes within `LIMIT` seconds. Memory is the process's peak above what it held before the
model was made. Writes results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from record import record
from rich.console import Console
from rich.table import Table
from torch import nn

from prunec import compiler, passes
from prunec.compiler.inference.graph import Graph
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite

LIMIT = 150.0
DEPTHS = (12, 24, 48, 96)
Model = tuple[nn.Module, dict[str, torch.Tensor]]


def _tokens(length: int = 64, below: int = 30_000) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, below, (2, length))}


def bert_base() -> Model:
    """12 layers of 768, 110M parameters."""
    config = transformers.BertConfig()
    return transformers.BertForSequenceClassification(config), _tokens()


def resnet_50() -> Model:
    """25.6M parameters."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(2, 3, 224, 224)}


def vit_b_16() -> Model:
    """86M parameters."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(2, 3, 224, 224)}


def swin_t() -> Model:
    """28M parameters, shifted windows."""
    model = transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(2, 3, 224, 224)}


def _llama(layers: int, width: int, hidden: int, heads: int, groups: int) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=128_256,
        tie_word_embeddings=width < 4096,
    )
    return transformers.LlamaForCausalLM(config)


def llama_1b() -> Model:
    """Llama-3.2-1B's shape, 1.24B parameters, real tensors."""
    return _llama(16, 2048, 8192, 32, 8), _tokens(16)


def llama_8b_meta() -> Model:
    """Llama-3-8B's shape on the meta device: a plan, no weights."""
    with torch.device("meta"):
        return _llama(32, 4096, 14_336, 32, 8), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


MODELS: dict[str, Callable[[], Model]] = {
    f.__name__: f for f in (bert_base, resnet_50, vit_b_16, swin_t, llama_1b, llama_8b_meta)
}


def deep_bert(depth: int) -> Model:
    """A narrow encoder of any depth: what grows is the graph."""
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=128
    )
    return transformers.BertForSequenceClassification(config), _tokens()


def half(graph: Graph) -> dict[str, list[int]]:
    """The first half of every width; heads stay."""
    return {
        d.name: list(range(max(d.minimum, d.size // 2)))
        for d in graph.prunable.values()
        if d.kind in ("residual", "channel", "hidden")
    }


def stages(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Seconds of capture (with inference), of inference alone, and of rewriting with slicing."""
    clock = time.perf_counter
    began = clock()
    graph = compiler.capture(model, kwargs=inputs)
    captured = clock()
    graph = Graph(graph.program, graph.outputs)
    inferred = clock()
    rewrite(graph, Plan(kept=half(graph), graph=graph).planned())
    done = clock()
    return {
        "nodes": len(graph.program.graph.nodes),
        "capture + inference": captured - began,
        "inference": inferred - captured,
        "rewriting": done - inferred,
        "cut in all": captured - began + done - inferred,
    }


def pipeline(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Seconds and peak memory of a whole prune-only compile, proof and both back ends included."""
    began = time.perf_counter()
    graph = compiler.capture(model, kwargs=inputs)
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    result = compiler.PassManager(steps).run(graph)
    seconds = time.perf_counter() - began
    return {
        "compile with proof": seconds,
        "class": type(result.model).__name__,
        "dense bytes": _bytes(result.model),
    }


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def torch_pruning(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Seconds to build torch-pruning's pruner and to cut; 'not in time' is said as it is."""
    import torch_pruning as tp

    count = getattr(model.config, "num_attention_heads", None)
    heads = {
        m: count
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n.endswith(("query", "key", "value")) and count
    }
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    found: dict[str, Any] = {}

    def cut() -> None:
        try:
            began = time.perf_counter()
            pruner = tp.pruner.BasePruner(
                model,
                inputs,
                tp.importance.MagnitudeImportance(p=2),
                pruning_ratio=0.5,
                num_heads=heads,
                ignored_layers=[last],
                output_transform=lambda out: out.logits.sum(),
            )
            found["build"] = time.perf_counter() - began
            pruner.step()
            found["build + prune"] = time.perf_counter() - began
            with torch.no_grad():
                model(**inputs)
            found["runs"] = "yes"
        except Exception as error:
            found["runs"] = f"no: {(str(error).splitlines() or [type(error).__name__])[0][:90]}"

    work = threading.Thread(target=cut, daemon=True)
    work.start()
    work.join(LIMIT)
    return found or {"runs": f"no: not built within {LIMIT:.0f} s"}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(job: str, name: str) -> dict[str, Any]:
    """One measurement in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if job == "depth":
        stages(*deep_bert(2))  # imports and first-use costs are not the model's
        return stages(*deep_bert(int(name)))
    if job in ("stages", "torch-pruning"):
        run: Any = stages if job == "stages" else torch_pruning
        if job == "stages":
            stages(*deep_bert(2))
        return run(*MODELS[name]())
    pipeline(*deep_bert(2))
    before = _resident()
    model, inputs = MODELS[name]()
    model.eval()
    row = pipeline(model, inputs)
    own = _bytes(model)
    row["original bytes"] = own
    row["peak bytes"] = _resident() - before
    row["peak / (original + dense)"] = row["peak bytes"] / (own + row["dense bytes"])
    return row


def _apart(job: str, name: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", job, name]
    # glibc keeps freed blocks below a threshold that grows; a fixed one gives tensors back, so that
    # the peak counts what was held
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"} if job == "memory" else None
    done = subprocess.run(command, capture_output=True, text=True, env=own)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads(lines[-1])


def main() -> None:
    """All models, then the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)), flush=True)
        return
    rows: list[dict[str, Any]] = []
    for name in options.names or MODELS:
        row: dict[str, Any] = {"model": name, "prunec": _apart("stages", name)}
        row["compile"] = _apart("memory", name)
        if "meta" not in name:
            row["torch-pruning"] = _apart("torch-pruning", name)
        rows.append(row)
        print(json.dumps(row), flush=True)
    for depth in DEPTHS if not options.names else ():
        rows.append({"depth": depth, "prunec": _apart("depth", str(depth))})
        print(json.dumps(rows[-1]), flush=True)
    if not options.names:
        record("cost", rows)
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """The two tables."""
    table = Table(title="seconds to cut, and peak memory of a compile")
    for title in ("model", "nodes", "capture", "inference", "rewriting", "with proof", "memory"):
        table.add_column(title)
    table.add_column("torch-pruning")
    for row in rows:
        own, whole, peer = (row.get(k, {}) for k in ("prunec", "compile", "torch-pruning"))
        name = row.get("model") or f"encoder, {row['depth']} layers"
        table.add_row(
            name,
            str(own.get("nodes", "-")),
            *(_seconds(own.get(k)) for k in ("capture + inference", "inference", "rewriting")),
            _seconds(whole.get("compile with proof")),
            f"{whole['peak / (original + dense)']:.2f}" if "peak bytes" in whole else "-",
            f"{_seconds(peer.get('build + prune'))} {peer.get('runs', '')}",
        )
    Console(width=150).print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
