"""Batch-norm scores: the absolute scale that a batch norm gives a channel."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, fx

from ..compiler.errors import PlanError
from ..compiler.inference.dimensions import Dimension
from ..compiler.inference.rule import bound_arguments, op_name
from ..compiler.pass_class import Pass, PassResult
from .calibration.finite import not_finite
from .magnitude_score import magnitudes
from .sensitivity.entry_sums import entry_sums, mean_one

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation


@dataclasses.dataclass
class BatchNormScore(Pass):
    """Score each entry by |gamma|, summed over the batch norms that scale it and divided by the
    mean over its dimension (network slimming, Liu et al. 2017). Dimensions without one get
    magnitude scores. Sets `scores`; PlanError where no dimension has one.
    """

    name: ClassVar[str] = "batch-norm-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)

    def run(self, state: Compilation) -> PassResult:
        graph = state.graph
        scales: set[str] = set()
        for node in graph.program.graph.nodes:
            if op_name(node.target) == "aten::batch_norm":
                weight = bound_arguments(node)["weight"]
                if isinstance(weight, fx.Node) and weight.op == "get_attr":
                    scales.add(str(weight.target))
        scored = {
            name: [(tensor, axis) for tensor, axis in d.members if tensor in scales]
            for name, d in graph.prunable.items()
        }
        if not any(scored.values()) or graph.program.is_meta:
            raise PlanError(
                "BatchNormScore found no batch norm that scales a dimension; take another score."
            )

        def score(dimension: Dimension) -> Tensor:
            total = torch.zeros(dimension.size, dtype=torch.float64)
            for name, axis in scored[dimension.name]:
                if not bool(graph.program.tensors[name].isfinite().all()):
                    raise not_finite(f"the weight '{name}'")
                total += entry_sums(graph, dimension, name, axis, graph.program.tensors[name].abs())
            return mean_one(total)

        state.scores = {
            name: score(d) if scored[name] else magnitudes(graph, d)
            for name, d in graph.prunable.items()
        }
        without = [name for name, own in scored.items() if not own]
        summary = f"scales of batch norms for {len(scored) - len(without)} dimensions"
        if without:
            summary += f"; {len(without)} others by magnitude"
        return PassResult(False, summary, {"by magnitude": without})
