"""The reference for dropped branches: the original, with the dropped value replaced where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..inference.graph import Graph
from ..ir.drop import Drop
from ..ir.program import Program
from .check import Check
from .interpreter import ProgramInterpreter, TensorHook
from .judge import Inputs, Trial, judge, reversed_tensor


class WithoutBranches(ProgramInterpreter):
    """Runs a program as captured; where a value was dropped, the one it is replaced by goes on.

    Everything before it is computed as ever, and no node is removed: nothing here uses the smaller
    graph.
    """

    def __init__(
        self,
        program: Program,
        drops: Sequence[Drop],
        dtype: torch.dtype | None = None,
        tensor_hook: TensorHook | None = None,
    ) -> None:
        super().__init__(program, dtype=dtype, tensor_hook=tensor_hook)
        self.drops = {drop.result: drop for drop in drops}
        self._sources = {drop.source for drop in drops}
        self._held: dict[str, Tensor] = {}

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        try:
            return super().__call__(inputs)
        finally:
            self._held.clear()

    def run_node(self, n: fx.Node) -> Any:
        drop = self.drops.get(n.name)
        value = super().run_node(n) if drop is None else self._instead(drop)
        if n.name in self._sources:
            self._held[n.name] = value.clone()  # an op in place may write to it later
        return value

    def _instead(self, drop: Drop) -> Tensor:
        value = self._held[drop.source].clone()
        if drop.constant is None:
            return value
        shape = [1] * value.dim()
        shape[drop.axis] = -1
        return value + drop.constant.to(value).reshape(shape)


def dropped(graph: Graph, inputs: Inputs) -> Check:
    """The graph without its dropped branches against the original with their values replaced."""

    def trial(dtype: torch.dtype | None) -> Trial:
        reference = WithoutBranches(graph.whole.program, graph.drops, dtype)
        smaller = ProgramInterpreter(graph.program, dtype=dtype)
        wrong = ProgramInterpreter(graph.program, dtype=dtype, tensor_hook=reversed_tensor)
        return Trial(smaller, reference, wrong)

    return judge("dropped branches", graph.program, inputs, trial)
