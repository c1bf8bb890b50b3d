"""torch-pruning on the models of the benchmarks: what it must be told, and a cut to some MACs."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler.measure.cost import cost

NEAR = 0.01  # MACs this close to those asked for are equal
STEPS = 10
HIGHEST = 0.95


def name() -> str:
    """The tool and its version."""
    return f"torch-pruning {tp.__version__}"


def prune(
    model: nn.Module, inputs: Mapping[str, Tensor], ratio: float, heads: bool = True
) -> dict[str, float]:
    """Cut a share of the channels, and of the attention heads, by magnitude; in place.

    The last layer gives the output and stays. Gives the seconds to build the pruner and to cut.
    Raises what torch-pruning raises.
    """
    queries: dict[nn.Module, int] = {}
    count = getattr(getattr(model, "config", None), "num_attention_heads", None)
    if count and heads:
        named = model.named_modules()
        queries = {m: count for n, m in named if n.endswith(("query", "key", "value"))}
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    began = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        dict(inputs),
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        num_heads=queries,
        prune_num_heads=bool(queries),
        head_pruning_ratio=ratio,
        ignored_layers=[last],
        output_transform=_scalar,
    )
    built = time.perf_counter()
    pruner.step()
    done = time.perf_counter()
    for module in model.modules():  # torch-pruning leaves the module's own sizes to its user
        if hasattr(module, "all_head_size"):
            own: Any = module
            own.num_attention_heads = pruner.num_heads[own.query]
            own.all_head_size = own.query.out_features
            own.attention_head_size = own.all_head_size // own.num_attention_heads
    return {"build": built - began, "prune": done - built}


def prune_to_macs(model: nn.Module, inputs: Mapping[str, Tensor], share: float) -> nn.Module:
    """A copy with this share of the MACs, as nearly as one ratio for all layers comes to it."""
    full = macs(model, inputs)
    best, nearest = model, float("inf")
    low, high = 0.0, HIGHEST
    for _ in range(STEPS):
        ratio = (low + high) / 2
        smaller = copy.deepcopy(model)
        prune(smaller, inputs, ratio)
        found = macs(smaller, inputs) / full
        if abs(found / share - 1) < nearest:
            best, nearest = smaller, abs(found / share - 1)
        if nearest <= NEAR:
            break
        low, high = (ratio, high) if found > share else (low, ratio)
    return best.eval()


def macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one sample, counted as prunec counts its own."""
    return cost(compiler.capture(model, kwargs=dict(inputs))).macs


def _scalar(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out.sum()
    pooled = getattr(out, "pooler_output", None)
    return (out.logits if pooled is None else pooled).sum()
