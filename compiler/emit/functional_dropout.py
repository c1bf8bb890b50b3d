"""Dropout that a model calls as a function: found by a capture in train mode, back as modules."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..capture.export import export
from ..capture.program import program_of
from ..capture.train_mode import train_mode
from ..capture.untouched import untouched
from ..cause import cause
from ..inference.graph import Graph
from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program
from .leaf_modules import innermost

_RATES = {"dropout": "p", "scaled_dot_product_attention": "dropout_p"}
_STOCHASTIC = ("bernoulli", "rand")


class AttentionDropout(nn.Module):
    """Fused attention that drops weights in train mode, as the captured model did."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, *args: Tensor, **options: Any) -> Tensor:
        """query, key and value as scaled_dot_product_attention takes them, and its options."""
        rate = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(*args, dropout_p=rate, **options)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout_rates(graph: Graph) -> tuple[dict[str, float], str]:
    """The rates that functional dropout has in train mode, by node name; and what was not found,
    in a sentence. Standard dropout layers are not among them: those are modules anyway."""
    places = _places(graph.program)
    if not places:
        return {}, ""
    try:
        with untouched(graph.source), train_mode(graph.source):
            program = graph.program
            exported, how = export(graph.source, program.args, program.kwargs, {})
            training = program_of(graph.source, exported, program.args, program.kwargs, how)
    except Exception as error:  # CaptureError, and whatever a model raises in train mode
        said = cause(error).partition(" Remedy:")[0].rstrip(".")
        return _captured(places), f"functional dropout could not be looked for in training ({said})"
    found = _places(training)
    rates: dict[str, float] = {}
    lost = [key for key in found if len(found[key]) != len(places.get(key, ()))]
    for key in places.keys() - set(lost):
        for node, other in zip(places[key], found.get(key, ()), strict=True):
            rate = float(_rate(other))
            if rate > 0:
                rates[node.name] = rate
    extra = [n for n in training.graph.nodes if any(s in op_name(n.target) for s in _STOCHASTIC)]
    if lost or extra:
        where = ", ".join(sorted({key[1] for key in lost} | {innermost(n) for n in extra})[:3])
        return rates, f"what is random in training at {where} is not in the graph"
    return rates, ""


def as_module(node: fx.Node, rate: float) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The module that does what the node does, and what to call it with."""
    given = bound_arguments(node)
    if _op(node) == "dropout":
        return nn.Dropout(rate), (given["x"],), {}
    inputs = tuple(given.pop(name) for name in ("query", "key", "value"))
    del given["dropout_p"]
    return AttentionDropout(rate), inputs, given


def _places(program: Program) -> dict[tuple[str, str], list[fx.Node]]:
    """Functional dropout by op and module path, in order."""
    modules = dict(program.source.named_modules(remove_duplicate=False))
    found: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for node in program.graph.nodes:
        path = innermost(node)
        if _op(node) in _RATES and not isinstance(modules.get(path), nn.Dropout):
            found[_op(node), path].append(node)
    return found


def _captured(places: dict[tuple[str, str], list[fx.Node]]) -> dict[str, float]:
    """The rates that eval mode shows."""
    return {n.name: float(_rate(n)) for nodes in places.values() for n in nodes if _rate(n) > 0}


def _rate(node: fx.Node) -> float:
    return bound_arguments(node)[_RATES[_op(node)]]


def _op(node: fx.Node) -> str:
    return op_name(node.target).removeprefix("aten::").rstrip("_")
