"""Which layers read a dimension, and which of their inputs and outputs each entry owns."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ...compiler.ir.terms import variables
from ...compiler.rewrite.slicing import term_labels
from ..calibration.consumers import Consumer, find_consumers

if TYPE_CHECKING:
    from torch import fx


@dataclasses.dataclass(frozen=True)
class Reading:
    """A layer that sums over a dimension: the entry that owns each of its inputs (`inputs`, int64
    [G, D]) and each of its outputs (`outputs`, int64 [G, O]); -1: none of the dimension's."""

    consumer: Consumer
    inputs: Tensor
    outputs: Tensor


def find_readings(graph: Graph) -> tuple[dict[str, list[Reading]], dict[str, str]]:
    """Per prunable dimension the layers that sum over it, in order of the graph; and, for each
    dimension with a sum that no least squares covers, why."""
    sums: dict[str, list[fx.Node]] = {}
    for name, dimension in graph.prunable.items():
        sums[name] = [
            sink.node for sink in graph.inference.sinks if dimension.var in variables(sink.term)
        ]
    weighted = [s.node.name for s in graph.inference.sinks if s.weight is not None]
    consumers, untreated = find_consumers(graph.program, list(dict.fromkeys(weighted)))
    by_node = {node.name: c for c in consumers for node in c.nodes}
    readings: dict[str, list[Reading]] = {}
    reasons: dict[str, str] = {}
    for name, nodes in sums.items():
        own = {n.name: by_node.get(n.name) for n in nodes}
        outside = next((n for n, consumer in own.items() if consumer is None), None)
        if outside is not None:
            reasons[name] = f"{outside}: {untreated.get(outside, 'it sums over no weight')}"
            continue
        found = {c.weight: _reading(graph, graph.prunable[name], c) for c in own.values() if c}
        overlap = next((weight for weight, r in found.items() if isinstance(r, str)), None)
        if overlap is not None:
            reasons[name] = f"{overlap}: {found[overlap]}"
        else:
            readings[name] = [r for r in found.values() if isinstance(r, Reading)]
    return readings, reasons


def _reading(graph: Graph, dimension: Dimension, consumer: Consumer) -> Reading | str:
    assert dimension.var is not None
    weight = graph.program.tensors[consumer.weight]
    terms = graph.inference.tensors[consumer.weight]
    outer, inner = (1, 0) if consumer.flipped else (0, 1)
    inputs = term_labels(terms[inner], dimension.var)
    outputs = term_labels(terms[outer], dimension.var)
    if len(inputs) > 1 or len(outputs) > 1:
        return "an input of its weight belongs to several entries"
    taps = math.prod(weight.shape[2:]) if consumer.patches is not None else 1
    columns = inputs[0].repeat_interleave(taps)
    return Reading(
        consumer,
        columns.expand(consumer.groups, -1),
        outputs[0].reshape(consumer.groups, -1),
    )


def entry_columns(owners: Tensor, size: int) -> Tensor:
    """The places each entry owns: int64 [size, k], filled up with -1. `owners` is int64 [D]."""
    counts = torch.bincount(owners[owners >= 0], minlength=size)
    width = int(counts.max()) if len(counts) else 0
    places = torch.full((size, width), -1, device=owners.device)
    order = torch.argsort(owners, stable=True)
    order = order[owners[order] >= 0]
    starts = counts.cumsum(0) - counts
    within = torch.arange(len(order), device=owners.device) - starts[owners[order]]
    places[owners[order], within] = order
    return places
