"""The moments of what each dimension is read from, on calibration data and the original model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ...compiler.ir.program import Program
from ..calibration.consumers import Consumer, columns
from ..calibration.finite import refuse_rows
from ..calibration.gram import Gram
from ..calibration.moments import wide
from ..calibration.progress import shown
from ..calibration.reduction import EXACT, REDUCED, GroupMoments, Groups, Reduction, reduction
from ..calibration.rows import sample
from ..calibration.streams import Stream
from ..calibration.tokens import TokenMasks
from .readings import Reading

BLOCK = 2048  # columns that are taken to be correlated, where there are too many for all
LEAST = 64  # of which blocks are worth it


@dataclasses.dataclass(frozen=True)
class Limits:
    """`rows`, or `rows_per_input` times the inputs, at most of one layer; `memory`: bytes for one
    layer's moments; `seed`: of the choice of rows."""

    rows: int
    rows_per_input: int
    memory: int
    seed: int


class InputMoments:
    """The moments of what layers read in the original model; ask in order of the graph."""

    def __init__(self, program: Program, batches: Sequence[Sequence[Any]], limits: Limits) -> None:
        self.program, self.batches, self.limits = program, batches, limits
        self.stream = Stream(program, batches)
        self.masks = TokenMasks(program, batches)
        self.generator = torch.Generator().manual_seed(limits.seed)

    def gram(self, readings: Sequence[Reading], full: bool) -> Gram:
        """Of the input of these layers over all its uses, padding left out. `full`: with
        covariances, where memory allows: of more than `EXACT` columns through fewer directions of
        each group of columns that belongs to the same entries, and in blocks where those are still
        more."""
        consumer = readings[0].consumer
        weight = self.program.tensors[consumer.weight].detach()
        inner, _ = columns(weight, consumer)
        device = wide(weight[:0]).device
        shape = consumer.groups, inner
        if not full:
            return self._measure(consumer, Gram(*shape, device, full=False), inner)
        if inner <= EXACT and self._held(consumer, inner, inner) <= self.limits.memory:
            return self._measure(consumer, Gram(*shape, device), inner)
        reduced = self._reduction(readings, inner, device)
        width = inner if reduced is None else reduced.width
        block = min(width, BLOCK, self.limits.memory // self._held(consumer, width, 1))
        if block < min(width, LEAST):
            return self._measure(consumer, Gram(*shape, device, full=False), inner)
        blocks = 1 if width <= EXACT and block == width else -(-width // block)
        gram = Gram(consumer.groups, width, device, True, reduced, blocks)
        return self._measure(consumer, gram, gram.x.shape[1])

    def _held(self, consumer: Consumer, inner: int, block: int) -> int:
        """The bytes of covariances in blocks, and of the two more that elimination makes."""
        return 3 * 8 * consumer.groups * inner * block

    def _reduction(
        self, readings: Sequence[Reading], inner: int, device: torch.device
    ) -> Reduction | None:
        """None where each column is a group of its own."""
        consumer = readings[0].consumer
        owners = torch.stack([r.inputs[g] for r in readings for g in range(consumer.groups)], 1)
        labels = torch.unique(owners, dim=0, return_inverse=True)[1]
        groups = Groups.of(labels)
        count = max(1, REDUCED // len(groups.columns))
        if groups.columns.shape[1] <= count:
            return None
        own = GroupMoments(groups, consumer.groups, device)
        self._measure(consumer, own, groups.columns.shape[1])
        sides = torch.zeros_like(own.xx)
        for reading in {r.consumer.weight: r for r in readings}.values():
            matrix = reading.consumer.matrix(self.program.tensors[reading.consumer.weight].detach())
            for part in groups.chunks(matrix.shape[2]):
                some = groups.weights(matrix, part)
                sides[:, part] += some @ some.mT / matrix.shape[2]
        return reduction(groups, own.covariance(centred=True), sides, count)

    def _measure(self, consumer: Consumer, into: Any, inner: int) -> Any:
        """Count the rows of the layer's input in; `inner`: by which so many rows are enough."""
        limit = max(self.limits.rows, self.limits.rows_per_input * inner)
        for node in consumer.nodes:
            if self.stream.passed(node):
                self.stream = Stream(self.program, self.batches)
            self.stream.advance(node)
            share: float | None = None
            for batch in range(len(self.batches)):
                self.stream.turn_to(batch)
                x = self.stream.value_of(consumer.input_of(node))
                y = self.stream.run_node(node)
                if share is None:  # of the rows of all batches, by those of the first
                    rows = y.numel() // y.shape[consumer.channel(y)]
                    share = limit / max(1, rows * len(self.batches) * len(consumer.nodes))
                tokens = self.masks.rows(node, batch, consumer.row_shape(y))
                start = 0
                for inputs, _ in consumer.blocks(x, y):
                    stop = start + inputs.shape[1]
                    if tokens is not None:
                        inputs = inputs[:, tokens[start:stop].to(inputs.device)]
                    into.add(sample(inputs, inputs, share, self.generator)[0])
                    start = stop
                refuse_rows(into.x, consumer.weight, batch)
        return into


@dataclasses.dataclass(frozen=True)
class Measured:
    """A dimension; per input it is read from, its moments and the layers that read it."""

    name: str
    dimension: Dimension
    readings: list[tuple[Gram, list[Reading]]]


def measured(
    graph: Graph,
    readings: dict[str, list[Reading]],
    batches: Sequence[Sequence[Any]],
    limits: Limits,
    *,
    full: bool,
    show: str | None,
) -> Iterator[Measured]:
    """Every dimension once the inputs it is read from are measured, in order of the graph; the
    moments that no dimension waits for are let go. `full`: with covariances, where memory allows.
    `show`: the name on the bar."""
    moments = InputMoments(graph.program, batches, limits)
    waiting = {name: _by_input(own) for name, own in readings.items()}
    grams: dict[Any, Gram] = {}
    for key in shown(_in_order(graph, waiting), show or "", show is not None):
        reading = [r for own in waiting.values() for r in own.get(key, ())]
        grams[key] = moments.gram(reading, full)
        for name in [n for n, own in waiting.items() if key in own and own.keys() <= grams.keys()]:
            own = waiting.pop(name)
            yield Measured(name, graph.prunable[name], [(grams[k], r) for k, r in own.items()])
        needed = {k for own in waiting.values() for k in own}
        grams = {k: g for k, g in grams.items() if k in needed}


def _by_input(readings: Sequence[Reading]) -> dict[Any, list[Reading]]:
    found: dict[Any, list[Reading]] = {}
    for reading in readings:
        found.setdefault(_input_of(reading.consumer), []).append(reading)
    return found


def _input_of(consumer: Consumer) -> tuple[Any, ...]:
    """Equal for layers that read the same values in the same way."""
    return tuple(consumer.input_of(node) for node in consumer.nodes), consumer.patches


def _in_order(graph: Graph, waiting: dict[str, dict[Any, list[Reading]]]) -> list[Any]:
    """Every input once, by the last of the nodes that read it."""
    place = {node: i for i, node in enumerate(graph.program.graph.nodes)}
    last = {
        key: place[own[0].consumer.nodes[-1]] for by in waiting.values() for key, own in by.items()
    }
    return sorted(last, key=last.__getitem__)
