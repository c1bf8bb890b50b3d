"""First and second moments of a layer's input and of its error, in double precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class Moments:
    """Sums over rows of a layer's input x and of its output's error e, in G independent groups.

    `xx` [G, D, D] sums x xᵀ, `xe` [G, D, O] sums x eᵀ, `x` [G, D], `e` [G, O] and `ee` [G, O] sum
    x, e and e². From these follow the least-squares change of the weights and the error after any
    change, without the rows. `second=False` keeps no `xx` and `xe`: a mean error is all that can be
    removed then.
    """

    def __init__(
        self, groups: int, inner: int, outer: int, device: torch.device, second: bool = True
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.count = 0
        self.x, self.e, self.ee = zeros(inner), zeros(outer), zeros(outer)
        self.xx = zeros(inner, inner) if second else None
        self.xe = zeros(inner, outer) if second else None

    def add(self, x: Tensor, e: Tensor) -> None:
        """Count rows in: x [G, N, D] and e [G, N, O]."""
        x, e = x.to(self.x), e.to(self.x)
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.e += e.sum(1)
        self.ee += e.square().sum(1)
        if self.xx is not None and self.xe is not None:
            self.xx += x.mT @ x
            self.xe += x.mT @ e

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows."""
        total = copy.copy(self)
        total.count = self.count + other.count
        for name in ("x", "e", "ee", "xx", "xe"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(total, name, None if mine is None else mine + theirs)
        return total

    def covered(self, centred: bool) -> Tensor:
        """The sums of x xᵀ; about their means with `centred`."""
        assert self.xx is not None
        if not centred or self.count == 0:
            return self.xx
        return self.xx - self.x[:, :, None] * self.x[:, None] / self.count

    @property
    def finite(self) -> bool:
        """Whether no row held a NaN or an infinity."""
        return all(bool(t.isfinite().all()) for t in (self.x, self.e, self.ee))

    def error(self, change: Tensor | None = None, shift: Tensor | None = None) -> float:
        """The sum of squared errors after the weights change by `change` [G, D, O] and the bias by
        `shift` [G, O]: what is left of e is e - changeᵀ x - shift."""
        total = self.ee.sum()
        if shift is not None:
            total = total - 2 * (shift * self.e).sum() + self.count * shift.square().sum()
        if change is not None:
            assert self.xx is not None
            assert self.xe is not None
            total = total - 2 * (change * self.xe).sum() + (change * (self.xx @ change)).sum()
            if shift is not None:
                total = total + 2 * (shift * (self.x[:, None] @ change)[:, 0]).sum()
        return float(total)
