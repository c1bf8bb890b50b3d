"""torch-pruning on the subjects of the repair benchmark, at the widths prunec was given."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from repair_subjects import Subject, Width
from torch import nn

SCORES = ("random", "magnitude", "Taylor")
QUERIES = ("query", "key", "value")
# What writes to the residual stream, which is left at its width, or gives the output.
STREAM = ("embedding", "position", "out", "down", "head", "dense", "word_embeddings")
UP = "intermediate.dense"  # BERT's hidden units, which are cut


def prune(subject: Subject, score: str, width: Width, seed: int) -> nn.Module:
    """A pruned copy of the subject's model, raw. Raises what torch-pruning raises."""
    model = copy.deepcopy(subject.model)
    importance = _importance(score)
    if score == "Taylor":
        if subject.labelled is None:
            raise ValueError("no labels to take gradients of a loss from")
        subject.labelled(model).backward()
    named = dict(model.named_modules())
    last = {n: n.rsplit(".", 1)[-1] for n in named}
    heads = {
        m: _head_count(model) for n, m in named.items() if subject.heads and last[n] in QUERIES
    }
    ignored = [m for n, m in named.items() if last[n] in STREAM and not n.endswith(UP)]
    torch.manual_seed(seed)
    pruner = tp.pruner.BasePruner(
        model,
        subject.example(),
        importance,
        pruning_ratio=1 - width.channels,
        head_pruning_ratio=1 - width.heads,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        ignored_layers=ignored,
        output_transform=lambda out: out.sum(),
    )
    pruner.step()
    for module in model.modules():  # torch-pruning leaves the modules' own sizes to its user
        query: Any = getattr(module, "query", None)
        if query in pruner.num_heads:
            _set_heads(module, pruner.num_heads[query], query.out_features)
    model.zero_grad()
    return model.eval()


@torch.no_grad()
def recalibrate(model: nn.Module, subject: Subject) -> nn.Module:
    """Set the running statistics of the batch norms to averages over the calibration data."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for batch in subject.calibration:
        model(batch)
    return model.eval()


def _importance(score: str) -> Any:
    return {
        "random": tp.importance.RandomImportance,
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "Taylor": tp.importance.GroupTaylorImportance,
    }[score]()


def _head_count(model: nn.Module) -> int:
    for module in model.modules():
        for attribute in ("heads", "num_attention_heads"):
            if isinstance(getattr(module, attribute, None), int):
                return getattr(module, attribute)
    raise ValueError("no module says how many heads it has")


def _set_heads(module: Any, heads: int, width: int) -> None:
    if hasattr(module, "heads"):
        module.heads = heads
    else:
        module.num_attention_heads, module.all_head_size = heads, width
        module.attention_head_size = width // heads
