"""Wide inputs seen through few directions of each group of their columns.

A convolution of 64 taps reads 64 columns of each channel; a layer behind a flattening reads a
column of each position. The moments of all of them, and what is solved with these, grow with the
square and the cube of their number. The directions are those in which a group, by itself, tells
most of what the layer makes of it: what is found among them is least squares over fewer inputs, so
its error is never below that of all columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from .moments import wide

EXACT = 4096  # columns that are solved for as they are
REDUCED = 1024  # directions that more columns than that are seen through, one a group at least
MOMENTS = 2**30  # bytes at most for the moments of one layer
WIDEST = 128  # columns of one group: a larger one is divided
_CHUNK = 1 << 24  # entries that are widened to double at once
_SPREAD = 1e-10  # of a group's largest variance: a direction with less is constant


@dataclasses.dataclass(frozen=True)
class Groups:
    """`columns` int64 [K, T]: the columns of each group, filled up with -1."""

    columns: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Groups:
        """Of columns with equal labels (int64 [D]), in parts of at most `WIDEST`."""
        order = torch.argsort(labels, stable=True)
        _, counts = torch.unique_consecutive(labels[order], return_counts=True)
        parts = [p for own in order.split(counts.tolist()) for p in own.split(WIDEST)]
        columns = torch.full((len(parts), max(len(p) for p in parts)), -1)
        for i, own in enumerate(parts):
            columns[i, : len(own)] = own
        return cls(columns)

    @classmethod
    def even(cls, count: int, taps: int) -> Groups:
        """Of `count` columns that follow one another, whole taps of a channel, as many groups as
        there may be directions."""
        size = min(WIDEST, max(taps if taps <= WIDEST else 1, -(-count // REDUCED)))
        size = -(-size // taps) * taps if taps <= WIDEST else size
        return cls.of(torch.arange(count) // size)

    def rows(self, x: Tensor) -> Tensor:
        """[G, N, D] as [G, K, N, T]; 0 where a group has fewer columns."""
        x = torch.cat([x, x.new_zeros(*x.shape[:2], 1)], 2)
        places = self.columns.to(x.device)
        return x[:, :, places.reshape(-1)].unflatten(2, places.shape).transpose(1, 2)

    def chunks(self, inner: int) -> Iterator[slice]:
        """Groups of which so many may be held at once; `inner`: what a column comes with."""
        step = max(1, _CHUNK // max(1, self.columns.shape[1] * inner))
        for start in range(0, len(self.columns), step):
            yield slice(start, min(start + step, len(self.columns)))

    def weights(self, weight: Tensor, part: slice) -> Tensor:
        """Of a matrix [G, D, O] the rows of some groups, in double: [G, k, T, O]."""
        places = self.columns[part].to(weight.device)
        own = wide(weight[:, places.clamp_min(0).reshape(-1)]).unflatten(1, places.shape)
        return own * (places >= 0)[None, :, :, None]


class GroupMoments:
    """Sums over rows of each group's own columns: x xᵀ [G, K, T, T] and x [G, K, T]."""

    def __init__(self, groups: Groups, count: int, device: torch.device) -> None:
        self.groups, self.count = groups, 0
        shape = count, *groups.columns.shape
        self.x = torch.zeros(*shape, dtype=torch.float64, device=device)
        self.xx = torch.zeros(*shape, shape[-1], dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Count rows in: x [G, N, D]."""
        if not x.shape[1]:
            return
        for part in self.groups.chunks(x.shape[0] * x.shape[1]):
            own = Groups(self.groups.columns[part]).rows(x).to(self.x)
            self.x[:, part] += own.sum(2)
            self.xx[:, part] += own.mT @ own
        self.count += x.shape[1]

    def covariance(self, centred: bool) -> Tensor:
        """[G, K, T, T]; about the means with `centred`."""
        mean = self.x / max(1, self.count)
        square = mean[..., :, None] * mean[..., None, :]
        return self.xx / max(1, self.count) - (square if centred else 0.0)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """`basis` [G, K, T, r]: of each group's columns to its directions, whose covariance is 1;
    `back` [G, K, r, T]: the weights of columns to those of directions. `covariance` [G, K, T, T]:
    of the columns."""

    groups: Groups
    basis: Tensor
    back: Tensor
    covariance: Tensor

    @property
    def width(self) -> int:
        """All directions of one group of the layer: K r."""
        return self.basis.shape[1] * self.basis.shape[3]

    def rows(self, x: Tensor) -> Tensor:
        """[G, N, D] as [G, N, K r]."""
        made = []
        for part in self.groups.chunks(x.shape[0] * x.shape[1]):
            own = Groups(self.groups.columns[part]).rows(x).to(self.basis)
            made.append(own @ self.basis[:, part])
        return torch.cat(made, 1).transpose(1, 2).flatten(2)

    def weights(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Of a layer's weight [G, D, O] that of the directions [G, K r, O]; and the variance that
        the directions of each group leave out, summed over outputs [G, K]."""
        made: list[Tensor] = []
        left: list[Tensor] = []
        for part in self.groups.chunks(matrix.shape[2]):
            own = self.groups.weights(matrix, part)
            made.append(self.back[:, part] @ own)
            whole = (own * (self.covariance[:, part] @ own)).sum((2, 3))
            left.append((whole - made[-1].square().sum((2, 3))).clamp_min(0))
        return torch.cat(made, 1).flatten(1, 2), torch.cat(left, 1)

    def columns(self, change: Tensor, inner: int) -> Tensor:
        """A change [G, K r, O] of the directions' weights as one of all columns' [G, D, O]."""
        own = self.basis @ change.unflatten(1, (self.basis.shape[1], -1))
        held = self.groups.columns.to(own.device) >= 0
        found = change.new_zeros(change.shape[0], inner, change.shape[2])
        found[:, self.groups.columns.to(own.device)[held]] = own[:, held]
        return found


def reduction(groups: Groups, covariance: Tensor, sides: Tensor, count: int) -> Reduction:
    """The `count` directions of each group in which it tells most.

    `covariance` [G, K, T, T]; `sides` [G, K, T, T]: S Sᵀ, with S [T, O] what the columns are to
    tell in units of their weights. Per group the singular value decomposition of H^1/2 S.
    """
    values, vectors = torch.linalg.eigh(covariance)
    top = values.amax(-1, keepdim=True).clamp_min(0)
    held = values > _SPREAD * top
    roots = torch.where(held, values, 0.0).sqrt()
    half = vectors * roots[..., None, :]
    _, told = torch.linalg.eigh(half.mT @ sides @ half)
    told = told[..., -count:]
    inverse = torch.where(held, roots, 1.0).reciprocal() * held
    basis = (vectors * inverse[..., None, :]) @ told
    return Reduction(groups, basis, told.mT @ half.mT, covariance)
