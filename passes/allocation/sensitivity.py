"""How much the outputs lose by what each dimension loses: the weights of a sum of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from ...compiler.capture.batch import batch_size
from ...compiler.compilation import Compilation
from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ...compiler.rewrite.rewrite import rewrite
from ...compiler.rewrite.selection import kept_count
from ...compiler.rounds import sizes_left
from ...compiler.verify.interpreter import ProgramInterpreter
from ...compiler.verify.sizes import few_rows
from ..calibration.consumers import Consumer
from ..sensitivity.readings import find_readings
from .allocation import Allocation
from .depth import Depth
from .planned import planned, stay

BATCHES = 2
ROWS = 16  # of a batch, at most
TRIED = 0.5  # of each dimension's entries; the lowest-scored others go, to see what that does
RANGE = 100.0  # weights lie between 1 / RANGE and RANGE


def sensitivities(
    state: Compilation, dimensions: Sequence[Dimension], curves: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """For each dimension the relative squared error of the outputs when half of what is left of it
    is gone, over the error that this makes where it is read; on the first rows of calibration data,
    one run for each dimension.

    Means are put right in that run, as a repair does, and the error at the readers is measured, not
    taken from the curve, which has the rest of the repair in it. Of a dimension without error curve
    it is over its own loss. An error near the outputs is theirs, one in a branch beside a wide
    stream hardly is; curves of single layers cannot tell. 1 for all where there are no data.
    """
    weights = dict.fromkeys((d.name for d in dimensions), 1.0)
    graph, batches = state.graph, _rows(state)
    if not batches or graph.program.is_meta or state.scores is None:
        return weights
    readers = _readers(graph, state.errors or {})
    nodes = {node for own in readers.values() for node in own}
    inside: list[dict[str, Tensor]] = [{} for _ in batches]
    expected = [
        ProgramInterpreter(graph.program, node_hook=_kept(values, nodes))(batch)
        for batch, values in zip(batches, inside, strict=True)
    ]
    left = sizes_left(state)
    for d in dimensions:
        width = kept_count(d, 1 - TRIED * left[d.name] / d.size)
        loss = float(curves[d.name][width])
        if d.var is None or loss <= 0 or width >= left[d.name]:
            continue
        program = rewrite(graph, {d.var: stay(state.scores[d.name], width)}, on_use=True)
        found: list[list[Any]] = []
        errors = _ReaderErrors(readers.get(d.name, {}))
        for batch, values in zip(batches, inside, strict=True):
            hook = errors.hook(values) if errors.readers else None
            found.append(ProgramInterpreter(program, node_hook=hook)(batch))
        error = _relative(found, expected)
        made = errors.total if errors.readers else loss
        if np.isfinite(error) and made > 0:
            weights[d.name] = float(np.clip(error / made, 1 / RANGE, RANGE))
    return weights


def allocation_error(state: Compilation, depth: Depth | None, allocation: Allocation) -> float:
    """The relative squared error of the outputs when the lowest-scored entries are gone from every
    dimension down to its width, and the dropped branches, without repair, on the first calibration
    batches."""
    batches = state.calibration[:BATCHES]
    graph, kept = planned(state, depth, allocation)
    program = rewrite(graph, kept, on_use=True)
    whole = state.graph.program
    expected = [ProgramInterpreter(whole)(batch) for batch in batches]
    return _relative([ProgramInterpreter(program)(batch) for batch in batches], expected)


class _ReaderErrors:
    """The error variance at the layers that read a dimension, over their variance, summed; while
    the run goes on with their means put right."""

    def __init__(self, readers: Mapping[str, Consumer]) -> None:
        self.readers = readers
        self._missed: dict[str, float] = {}
        self._spread: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Over what was run so far."""
        return sum(self._missed[n] / s for n, s in self._spread.items() if s > 0)

    def hook(self, expected: Mapping[str, Tensor]) -> Any:
        """For a run whose original gave these values."""

        def corrected(node: fx.Node, value: Any) -> Any:
            consumer, wanted = self.readers.get(node.name), expected.get(node.name)
            if consumer is None or wanted is None or value.shape != wanted.shape:
                return value
            axis = consumer.channel(value) % value.dim()
            others = [i for i in range(value.dim()) if i != axis]
            value = value + (wanted - value).mean(others, keepdim=True)
            centred = (wanted - wanted.mean(others, keepdim=True)).double()
            missed = (value - wanted).double().square().sum()
            self._missed[node.name] = self._missed.get(node.name, 0.0) + float(missed)
            spread = float(centred.square().sum())
            self._spread[node.name] = self._spread.get(node.name, 0.0) + spread
            return value

        return corrected


def _readers(graph: Graph, errors: Mapping[str, Tensor]) -> dict[str, dict[str, Consumer]]:
    """For each dimension with an error curve the nodes that read it."""
    readings, _ = find_readings(graph)
    return {
        name: {node.name: r.consumer for r in own for node in r.consumer.nodes}
        for name, own in readings.items()
        if name in errors
    }


def _kept(values: dict[str, Tensor], nodes: set[str]) -> Any:
    def keep(node: fx.Node, value: Any) -> Any:
        if node.name in nodes:
            values[node.name] = value.clone()  # what follows may write into it
        return value

    return keep


def _rows(state: Compilation) -> list[list[Any]]:
    program = state.graph.program
    return [
        few_rows(program, flat, min(ROWS, batch_size(tuple(flat), {}) or 1))
        for flat in state.calibration[:BATCHES]
    ]


def _relative(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> float:
    """|found - expected|^2 / |expected|^2, for each floating output, averaged over outputs."""
    shares: list[float] = []
    for a, b in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        if isinstance(b[0], Tensor) and b[0].is_floating_point():
            off = sum(
                float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True)
            )
            size = sum(float(y.double().square().sum()) for y in b)
            shares += [off / size] if size > 0 else []
    return sum(shares) / len(shares) if shares else float("nan")
