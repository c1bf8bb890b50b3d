"""Layers of many inputs: solved for through few directions of each group of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..calibration.moments import Moments, wide
from ..calibration.reduction import GroupMoments, Groups, Reduction, reduction

_SINGULAR = 1e-6  # of a group's largest variance: nothing is told by less


class Telling:
    """What each group of inputs tells of a layer's error by itself, summed over rows."""

    def __init__(
        self, groups: Groups, count: int, outer: int, device: torch.device, centred: bool
    ) -> None:
        self.own, self.centred = GroupMoments(groups, count, device), centred
        self.xe = torch.zeros(
            *self.own.x.shape, outer, dtype=torch.float64, device=device
        )
        self.e = torch.zeros(count, outer, dtype=torch.float64, device=device)

    def add(self, x: Tensor, e: Tensor) -> None:
        """Count rows in: x [G, N, D] and e [G, N, O]."""
        if not x.shape[1]:
            return
        self.own.add(x)
        e = wide(e)
        self.e += e.sum(1)
        groups = self.own.groups
        for part in groups.chunks(x.shape[0] * x.shape[1]):
            some = wide(Groups(groups.columns[part]).rows(x))
            self.xe[:, part] += some.mT @ e[:, None]

    def directions(self, count: int) -> Reduction:
        """The `count` directions of each group that tell most, of length 1: a change of their
        weights is as large as that of the columns' weights."""
        rows = max(1, self.own.count)
        covariance, told = self.own.covariance(self.centred), self.xe / rows
        if self.centred:
            told = told - (self.own.x / rows)[..., None] * (self.e / rows)[:, None, None]
        values, vectors = torch.linalg.eigh(covariance)
        top = values.amax(-1, keepdim=True).clamp_min(0)
        held = values > _SINGULAR * top
        inverse = torch.where(held, values, 1.0).reciprocal() * held
        alone = vectors @ (inverse[..., None] * (vectors.mT @ told))
        found = reduction(self.own.groups, covariance, alone @ alone.mT, count)
        return dataclasses.replace(found, basis=torch.linalg.qr(found.basis)[0])


@dataclasses.dataclass
class Seen:
    """Moments of what a reduction makes of a layer's inputs."""

    reduction: Reduction
    moments: Moments

    def add(self, x: Tensor, e: Tensor) -> None:
        """Count rows in: x [G, N, D] and e [G, N, O]."""
        self.moments.add(self.reduction.rows(x), e)
