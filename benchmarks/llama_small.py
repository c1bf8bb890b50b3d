"""A small Llama (grouped-query attention, rotary positions): pruned, generating, saved, loaded.

    python benchmarks/llama_small.py

Random weights: what is shown is structure. Writes results/llama_small.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from record import record
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from prunec import compiler, passes


def main() -> None:
    """Cut, generate, save, load, generate again; print what was compared."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=8000,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 8000, (2, 24))
    graph = compiler.capture(model, kwargs={"input_ids": ids})
    result = compiler.PassManager(
        [
            passes.MagnitudeScore(),
            passes.PruneHeads(ratio=0.25),
            passes.PruneChannels(ratio=0.5, include="hidden", round_to=32),
            passes.SparseToDense(),
        ]
    ).run(graph)
    prompt = ids[:, :8]
    tokens = result.model.generate(prompt, max_new_tokens=24, do_sample=False)
    with tempfile.TemporaryDirectory() as scratch:
        place = result.save(Path(scratch) / "llama", onnx=True, measure=("torch", "onnxruntime"))
        loaded = compiler.load(place)
        graph_model = compiler.load(place, graph=True)
        again = loaded.generate(prompt, max_new_tokens=24, do_sample=False)
        with torch.no_grad():
            difference = (graph_model(input_ids=ids).logits - loaded(ids).logits).abs().max()
    rows = {
        "class": type(loaded).__name__,
        "parameters": result.report.after.params / result.report.before.params,
        "same tokens after loading": bool(torch.equal(tokens, again)),
        "graph against module": float(difference),
        "checks": {c.name: c.error for c in result.report.checks},
        "onnx parity": result.report.onnx.max_rel_error if result.report.onnx else None,
        "speed": {f"{c.runtime} {c.batch}": round(c.ratio, 2) for c in result.report.latency},
    }
    record("llama_small", rows)
    console = Console(width=120)
    result.report.print(console)
    console.print(rows)


if __name__ == "__main__":
    main()
