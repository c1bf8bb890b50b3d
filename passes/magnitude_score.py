"""Magnitude scores: the norm of every slice an entry owns, over all coupled tensors."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..compiler.compilation import Compilation
from ..compiler.errors import PlanError
from ..compiler.inference.dimensions import Dimension
from ..compiler.inference.graph import Graph
from ..compiler.pass_class import Pass, PassResult
from .calibration.finite import not_finite
from .sensitivity.entry_sums import entry_sums, mean_one


@dataclasses.dataclass
class MagnitudeScore(Pass):
    """Score each entry by the Lp norm of all parameter slices it owns, divided by the mean over
    its dimension, so that dimensions compare (Li et al. 2017; group form of DepGraph, Fang et al.
    2023, eq. 4). `norm`: 1 or 2.

    Analysis only: sets `scores`. Raises PlanError for another norm, and for weights that are not
    finite.
    """

    norm: int = 2

    name: ClassVar[str] = "magnitude-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise PlanError(f"MagnitudeScore knows the norms 1 and 2, not {self.norm!r}.")

    def run(self, state: Compilation) -> PassResult:
        state.scores = {
            name: magnitudes(state.graph, d, self.norm) for name, d in state.graph.prunable.items()
        }
        return PassResult(False, f"L{self.norm} scores of {len(state.scores)} dimensions")


def magnitudes(graph: Graph, dimension: Dimension, norm: int = 2) -> Tensor:
    """Importance per entry, float64 of shape [size], mean 1 (all equal: all ones)."""
    total = torch.zeros(dimension.size, dtype=torch.float64)
    for name, axis in dimension.members:
        tensor = graph.program.tensors[name]
        if not isinstance(tensor, nn.Parameter) or tensor.device.type == "meta":
            continue
        wide = torch.promote_types(tensor.dtype, torch.float32)
        others = [a for a in range(tensor.dim()) if a != axis]
        norms = (
            torch.linalg.vector_norm(tensor, norm, dim=others, dtype=wide)
            if others
            else tensor.abs().to(wide)
        )
        if not bool(norms.isfinite().all()):
            raise not_finite(f"the weight '{name}'")
        total += entry_sums(graph, dimension, name, axis, norms.detach().double() ** norm)
    return mean_one(total.sqrt() if norm == 2 else total)
