"""What an allocation came to: widths, and what was predicted and measured for them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...compiler.target import Target
from .allocation import Allocation


@dataclasses.dataclass
class Reached:
    """An allocation and the target's quantity as `predicted` and, where the target is one of speed,
    as `measured` beside the original. `met`: whether the target is. `rounds`: what was measured on
    the way, with both numbers. `why`: what stands in the way of more. `loss`: its sum of losses.
    """

    allocation: Allocation
    met: bool = True
    predicted: float | None = None
    measured: float | None = None
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    why: str = ""
    loss: float = 0.0

    @property
    def value(self) -> float:
        """The target's quantity, measured rather than predicted."""
        found = self.measured if self.measured is not None else self.predicted
        return found if found is not None else float("nan")

    def details(self) -> dict[str, Any]:
        """For the report."""
        found = {"predicted": self.predicted, "measured": self.measured, "rounds": self.rounds}
        return {name: value for name, value in found.items() if value not in (None, [])}

    def summary(self, target: Target) -> str:
        """One line."""
        words = [str(target)]
        for word, value in (("predicted", self.predicted), ("measured", self.measured)):
            if value is not None:
                words.append(f"{word} {value:.3g}")
        return ", ".join(words)
