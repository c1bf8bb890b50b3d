"""What an allocation means as a plan: the entries that the passes after it will keep."""

from __future__ import annotations

import torch
from torch import Tensor

from ...compiler.compilation import Compilation
from ...compiler.inference.graph import Graph
from ...compiler.ir.terms import Var
from ...compiler.rewrite.correspondence import inherited
from ...compiler.rewrite.selection import lowest
from .allocation import Allocation
from .depth import Depth


def planned(
    state: Compilation, depth: Depth | None, allocation: Allocation
) -> tuple[Graph, dict[Var, Tensor]]:
    """The graph without the dropped branches, and what stays when the lowest-scored entries go from
    every dimension down to its width; of others what an earlier plan keeps."""
    assert state.scores is not None
    graph, widths, scores = state.graph, allocation.widths, state.scores
    before = state.plan.kept
    if depth is not None and allocation.dropped:
        graph = depth.without(state.graph, allocation.dropped)
        widths = inherited(state.graph, graph, widths)
        scores = inherited(state.graph, graph, scores)
        before = inherited(state.graph, graph, before)
    kept: dict[Var, Tensor] = {}
    for d in graph.prunable.values():
        width = widths.get(d.name, d.size)
        if d.var is None:
            continue
        if width < d.size:
            kept[d.var] = stay(scores[d.name], width)
        elif d.name in before:
            kept[d.var] = torch.tensor(before[d.name])
    return graph, kept


def stay(scores: Tensor, width: int) -> Tensor:
    """The entries that stay, ascending, when the lowest-scored go."""
    stays = torch.ones(len(scores), dtype=torch.bool)
    stays[lowest(scores, len(scores) - width).cpu()] = False
    return stays.nonzero().reshape(-1)
