"""Watching a run: a metric at intervals, the best weights kept, a stop when it no longer rises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.user_code import as_number, call_user
from .losses import DistillError
from .modes import in_mode


@dataclasses.dataclass
class Watch:
    """`metric`: a callable on the student, higher is better; None: nothing is watched.

    `patience`: stop after so many measurements without a better one; None: never. The first value
    is that of the weights before training, so a run can never end worse than it began.
    """

    metric: Callable[[nn.Module], float] | None
    patience: int | None
    values: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    best: float = -math.inf
    best_step: int = 0
    kept: list[Tensor] = dataclasses.field(default_factory=list)

    def look(self, student: nn.Module, step: int, live: Sequence[Tensor]) -> bool:
        """Measure; gives whether to go on. A metric that is not a number counts as none better."""
        if self.metric is None:
            return True
        with in_mode(student, training=False), torch.no_grad():
            given = call_user(f"metric at step {step}", self.metric, student)
        value = as_number(given)
        if value is None:
            raise DistillError(
                f"metric gave {type(given).__name__} at step {step}: let it return one number, "
                "higher is better."
            )
        self.values.append((step, value))
        if value > self.best:
            self.best, self.best_step = value, step
            self.kept = [tensor.detach().clone() for tensor in live]
        since = sum(1 for s, _ in self.values if s > self.best_step)
        return self.patience is None or since < self.patience

    @torch.no_grad()
    def restore(self, live: Sequence[Tensor]) -> None:
        """Put the best weights back, if any were kept."""
        for tensor, kept in zip(live if self.kept else (), self.kept, strict=True):
            tensor.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        names = ("values", "best", "best_step", "kept")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
