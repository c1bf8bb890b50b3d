"""How much the outputs lose by what each dimension loses: the weights of a sum of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...compiler.compilation import Compilation
from ...compiler.inference.dimensions import Dimension
from ...compiler.rewrite.correspondence import inherited
from ...compiler.rewrite.rewrite import rewrite
from ...compiler.rewrite.selection import kept_count, lowest
from ...compiler.verify.interpreter import ProgramInterpreter
from .allocation import Allocation
from .depth import Depth

BATCHES = 2
TRIED = 0.5  # of each dimension's entries, the lowest-scored, taken out to see what it does
RANGE = 100.0  # weights lie between 1 / RANGE and RANGE


def sensitivities(
    state: Compilation, dimensions: Sequence[Dimension], curves: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """For each dimension the relative squared error of the outputs when half of it is gone, over
    its own loss at that width; on the first calibration batches, one run for each dimension.

    An error near the outputs is theirs, one in a branch beside a wide stream hardly is; curves of
    single layers cannot tell. 1 for all where there are no calibration data.
    """
    weights = dict.fromkeys((d.name for d in dimensions), 1.0)
    graph, batches = state.graph, state.calibration[:BATCHES]
    if not batches or graph.program.is_meta or state.scores is None:
        return weights
    expected = [ProgramInterpreter(graph.program)(batch) for batch in batches]
    for d in dimensions:
        width = kept_count(d, TRIED)
        loss = float(curves[d.name][width])
        if d.var is None or loss <= 0 or width == d.size:
            continue
        stays = torch.ones(d.size, dtype=torch.bool)
        stays[lowest(state.scores[d.name], d.size - width).cpu()] = False
        program = rewrite(graph, {d.var: stays.nonzero().reshape(-1)}, on_use=True)
        found = [ProgramInterpreter(program)(batch) for batch in batches]
        error = _relative(found, expected)
        if np.isfinite(error):
            weights[d.name] = float(np.clip(error / loss, 1 / RANGE, RANGE))
    return weights


def allocation_error(state: Compilation, depth: Depth | None, allocation: Allocation) -> float:
    """The relative squared error of the outputs when the lowest-scored entries are gone from every
    dimension down to its width, and the dropped branches, without repair, on the first calibration
    batches."""
    assert state.scores is not None
    graph, batches = state.graph, state.calibration[:BATCHES]
    widths, scores = allocation.widths, state.scores
    if depth is not None and allocation.dropped:
        graph = depth.without(state.graph, allocation.dropped)
        widths = inherited(state.graph, graph, widths)
        scores = inherited(state.graph, graph, scores)
    kept: dict[Any, Tensor] = {}
    for name, width in widths.items():
        d = graph.dimensions[name]
        if d.var is not None and width < d.size:
            stays = torch.ones(d.size, dtype=torch.bool)
            stays[lowest(scores[name], d.size - width).cpu()] = False
            kept[d.var] = stays.nonzero().reshape(-1)
    program = rewrite(graph, kept, on_use=True)
    whole = state.graph.program
    expected = [ProgramInterpreter(whole)(batch) for batch in batches]
    return _relative([ProgramInterpreter(program)(batch) for batch in batches], expected)


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
