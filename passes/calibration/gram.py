"""Second moments of what a layer reads: the covariance of its inputs, or their variances alone."""

from __future__ import annotations

import torch
from torch import Tensor


class Gram:
    """Sums over rows of a layer's input x, in G independent groups, in double precision.

    `full`: keep x xᵀ [G, D, D]; otherwise its diagonal [G, D] only. Both are taken about the first
    rows' mean, by which a large common offset loses no digits.
    """

    def __init__(self, groups: int, inner: int, device: torch.device, full: bool = True) -> None:
        shape = (groups, inner, inner) if full else (groups, inner)
        self.count, self.full = 0, full
        self.x = torch.zeros(groups, inner, dtype=torch.float64, device=device)
        self.xx = torch.zeros(*shape, dtype=torch.float64, device=device)
        self._pivot: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Count rows in: x [G, N, D]."""
        x = x.to(self.x)
        if self._pivot is None and x.shape[1]:
            self._pivot = x.mean(1, keepdim=True)
        x = x if self._pivot is None else x - self._pivot
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.xx += x.mT @ x if self.full else x.square().sum(1)

    def covariance(self) -> Tensor:
        """[G, D, D], or the variances [G, D] where those are all there is."""
        mean = self.x / max(1, self.count)
        square = mean[:, :, None] * mean[:, None] if self.full else mean.square()
        return self.xx / max(1, self.count) - square
