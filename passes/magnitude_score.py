"""Magnitude scores: the norm of every slice an entry owns, over all coupled tensors."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..compiler.compilation import Compilation
from ..compiler.errors import PlanError
from ..compiler.inference.dimensions import Dimension
from ..compiler.passmanager import Pass, PassResult
from ..compiler.rewrite.slicing import term_labels


@dataclasses.dataclass
class MagnitudeScore(Pass):
    """Score each entry by the Lp norm of all parameter slices it owns, divided by the mean over
    its dimension, so that dimensions compare (Li et al. 2017; group form of DepGraph, Fang et al.
    2023, eq. 4). `norm`: 1 or 2.

    Analysis only: sets `scores`. Raises PlanError for another norm.
    """

    norm: int = 2

    name: ClassVar[str] = "magnitude-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise PlanError(f"MagnitudeScore knows the norms 1 and 2, not {self.norm!r}.")

    def run(self, state: Compilation) -> PassResult:
        state.scores = {
            name: magnitudes(state, d, self.norm) for name, d in state.graph.prunable.items()
        }
        return PassResult(False, f"L{self.norm} scores of {len(state.scores)} dimensions")


def magnitudes(state: Compilation, dimension: Dimension, norm: int = 2) -> Tensor:
    """Importance per entry, float64 of shape [size], mean 1 (all equal: all ones)."""
    graph = state.graph
    assert dimension.var is not None
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
        ).detach()
        per_position = norms.double().cpu() ** norm
        labels = term_labels(graph.inference.tensors[name][axis], dimension.var)
        for row in labels:
            owned = row >= 0
            total.index_add_(0, row[owned], per_position[owned])
    if norm == 2:
        total = total.sqrt()
    mean = total.mean()
    return total / mean if mean > 0 else torch.ones_like(total)
