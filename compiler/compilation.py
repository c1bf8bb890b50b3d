"""The state a pipeline of passes works on: the captured graph, the plan, and what came of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .emit.build import Dense
from .emit.replay import computed
from .inference.graph import Graph
from .plan import Plan
from .rewrite.dead import DeadEntries
from .rewrite.slicing import zero_tensor

if TYPE_CHECKING:
    from .verify.oracles import Check


class Compilation:
    """What passes read and extend.

    `graph` is the model as captured and never changes. `plan` says what goes; `scores` give each
    dimension's entries their importance (float tensor of the dimension's size); `errors` each
    dimension's relative squared error at its consumers by width (float64 [size + 1], entry w with
    w entries kept, 0 at the full width, never rising with w; None or without the dimension where no
    score knows it); `widths` how many entries of a dimension stay. `dense` is there once
    SparseToDense has run. `calibration` is what `compile` was given: unlabelled batches, flat
    inputs of the program.
    """

    def __init__(self, graph: Graph, calibration: list[list[Any]] | None = None) -> None:
        self.graph = graph
        name = type(graph.source).__qualname__
        self.plan = Plan(
            model=name, outputs=graph.outputs, untie_tables=graph.untie_tables, graph=graph
        )
        self.scores: dict[str, Tensor] | None = None
        self.errors: dict[str, Tensor] | None = None
        self.widths: dict[str, int] | None = None
        self.dense: Dense | None = None
        self.dead = DeadEntries()
        self.calibration = calibration or []
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.facts: set[str] = set()

    @property
    def model(self) -> nn.Module:
        """The model as it stands: dense, or a masked copy of the original before the rewrite."""
        return self.dense.model if self.dense is not None else masked_model(self.graph, self.plan)


def masked_model(graph: Graph, plan: Plan) -> nn.Module:
    """A copy of the user's model with every slice of a planned removal set to zero."""
    kept = plan.planned()
    memo: dict[int, Any] = dict(computed(graph.source))
    for name, tensor in graph.program.tensors.items():
        data = zero_tensor(tensor, graph.inference.tensors[name], kept)
        data = data.clone() if data.data_ptr() == tensor.data_ptr() else data
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(data, tensor.requires_grad)
        else:
            memo[id(tensor)] = data
    return copy.deepcopy(graph.source, memo)
