"""How far a layer's weights may move: the ridge, chosen so that a repair cannot hurt elsewhere.

Other data than the calibration's differ from them most in the directions in which these hardly
move, where least squares is free to put any weight. A ridge on the change pulls those back to the
weights as they were cut.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..calibration.moments import Moments
from .least_squares import best_shift, solve, spread

RIDGES = (1e-9, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # the first for what the inputs can fully replace
TOLERANCE = 0.02
"""The largest ridge is taken that gives up at most this share of what the best one gains on the
rows kept apart. The standard error of that gain (Breiman et al. 1984, the one-standard-error rule)
has no meaning over rows that depend on one another, as tokens and patches do; a share has."""
REPLACED = 1e-6
"""Of the error that is to go: what is left where the inputs fully replace what was cut."""
ELSEWHERE = 1.0
"""On inputs of the same mean square that spread evenly over all directions, a change may add at
most this many times the error that the cut made on the calibration data."""
GROWTH = 2.0
"""The norm of a layer's weight may become at most this many times what it was."""
LOW_RANK = 0.5
"""Of the directions in which data can move where they enter a model: data that move in fewer, as
texts of one template do, tie what was cut to what is left by chance, and layers fitted to them are
worse on other data than ones left alone. Not asked of what enters by convolutions over several
taps, where neighbours repeat each other on any data."""
RANK_RIDGE = 1e-3
"""Directions with less than this share of the mean variance hardly count into the rank."""
STILL = 1e-7
"""Of the largest deviation: an input with less does not move."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """`ridge` to solve with, None where no change of the weights helps on rows kept apart. `rank`:
    the directions in which the inputs move (see `effective_rank`)."""

    ridge: float | None
    rank: float


def choose(fit: Moments, held_out: Moments, centred: bool) -> Choice:
    """Of `RIDGES` the largest within `TOLERANCE` of the best on rows that the change was not made
    from, which does no more harm than `ELSEWHERE` elsewhere. None where every one does
    worse there than the bias alone."""
    rank = effective_rank(fit, centred)
    bias = best_shift(fit, None) if centred else None
    base, made = held_out.error(None, bias), fit.error(None, bias)
    tried: list[tuple[float, float, float]] = []
    for ridge in RIDGES:
        change = solve(fit, ridge, centred)
        if change is None:
            continue
        error = held_out.error(change, best_shift(fit, change) if centred else None)
        tried.append((ridge, error, elsewhere(fit, change, centred) / made if made > 0 else 0.0))
    if not tried or held_out.count == 0:
        return Choice(None, rank)
    best = min(error for _, error, _ in tried)
    if not best < base:
        return Choice(None, rank)
    if best <= REPLACED * base:
        return Choice(next(r for r, error, _ in tried if error <= REPLACED * base), rank)
    near = max(r for r, error, _ in tried if error <= best + TOLERANCE * (base - best))
    safe = [(r, e) for r, e, harm in tried if r >= near and harm <= ELSEWHERE]
    ridge = next((r for r, error in safe if error < base), None)
    return Choice(ridge, rank)


def elsewhere(moments: Moments, change: Tensor, centred: bool) -> float:
    """The squared error that a change adds on as many inputs of the same mean square, spread
    evenly over all directions."""
    scale = spread(moments, centred).mean(-1)
    return float((change.square().sum((1, 2)) * scale).sum())


def effective_rank(moments: Moments, centred: bool) -> float:
    """The degrees of freedom of ridge regression on these inputs, each in units of its own
    deviation: tr C (C + lambda)^-1 with C their correlations and lambda `RANK_RIDGE` (Hastie et
    al., 2009, eq. 3.50); of the group with least."""
    if moments.xx is None or not moments.count:
        return float("nan")
    xx = moments.covered(centred)
    deviation = xx.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    held = deviation > STILL * deviation.amax()
    unit = torch.where(held, deviation, 1.0).reciprocal() * held
    eye = torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
    damped = unit[:, :, None] * xx * unit[:, None] + RANK_RIDGE * eye
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return float("nan")
    half = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return float((xx.shape[-1] - RANK_RIDGE * half.square().sum((1, 2))).min())
