"""Random scores: what any other score has to beat."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import torch

from ..compiler.pass_class import Pass, PassResult

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation


@dataclasses.dataclass
class RandomScore(Pass):
    """Score entries at random, the same for the same `seed`. Analysis only: sets `scores`."""

    seed: int = 0

    name: ClassVar[str] = "random-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)

    def run(self, state: Compilation) -> PassResult:
        generator = torch.Generator().manual_seed(self.seed)
        state.scores = {
            name: torch.rand(d.size, dtype=torch.float64, generator=generator)
            for name, d in state.graph.prunable.items()
        }
        return PassResult(False, f"random scores of {len(state.scores)} dimensions")
