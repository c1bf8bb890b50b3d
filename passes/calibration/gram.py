"""Second moments of what a layer reads: the covariance of its inputs, or their variances alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .reduction import Reduction


class Gram:
    """Sums over rows of a layer's input x, in G independent groups, in double precision.

    `full`: keep x xᵀ [G, D, D]; otherwise its diagonal [G, D] only. Both are taken about the first
    rows' mean, by which a large common offset loses no digits. `reduction`: x is what it makes of
    the layer's input. `blocks`: x is taken in so many parts that are not correlated, as so many
    times the groups.
    """

    def __init__(
        self,
        groups: int,
        inner: int,
        device: torch.device,
        full: bool = True,
        reduction: Reduction | None = None,
        blocks: int = 1,
    ) -> None:
        groups, inner = groups * blocks, -(-inner // blocks)
        shape = (groups, inner, inner) if full else (groups, inner)
        self.count, self.full = 0, full
        self.reduction, self.blocks = reduction, blocks
        self.x = torch.zeros(groups, inner, dtype=torch.float64, device=device)
        self.xx = torch.zeros(*shape, dtype=torch.float64, device=device)
        self._pivot: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Count rows in: x [G, N, D]."""
        x = x if self.reduction is None else self.reduction.rows(x)
        x = split(x.to(self.x), self.blocks)
        if self._pivot is None and x.shape[1]:
            self._pivot = x.mean(1, keepdim=True)
        x = x if self._pivot is None else x - self._pivot
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.xx += x.mT @ x if self.full else x.square().sum(1)

    @property
    def approximate(self) -> bool:
        """Whether covariances are of less than all columns."""
        return self.reduction is not None or self.blocks > 1

    def covariance(self) -> Tensor:
        """[G, D, D], or the variances [G, D] where those are all there is."""
        mean = self.x / max(1, self.count)
        square = mean[:, :, None] * mean[:, None] if self.full else mean.square()
        return self.xx / max(1, self.count) - square


def split(x: Tensor, blocks: int, value: int = 0) -> Tensor:
    """[G, N, D] as [G * blocks, N, D / blocks], filled up with `value`."""
    if blocks == 1:
        return x
    width = -(-x.shape[2] // blocks)
    x = torch.nn.functional.pad(x, (0, width * blocks - x.shape[2]), value=value)
    return x.unflatten(2, (blocks, width)).transpose(1, 2).flatten(0, 1)
