"""Ridge regression of a layer's error on its input, from moments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.moments import Moments

RIDGES = (1e-9, 1e-3, 1e-2, 1e-1, 1.0)  # the first is for what the inputs left can fully replace
_ATTEMPTS = 4
_SINGULAR = 10.0  # a ridge that does not make the moments definite is raised by this factor


def solve(moments: Moments, ridge: float, centred: bool) -> Tensor | None:
    """The change [G, D, O] of the weights that minimises |e - changeᵀ x|² + lambda |change|².

    lambda is `ridge` times the mean of the diagonal of xxᵀ, per group. `centred`: a bias takes the
    mean error, so x and e are taken from their means. A ridge on the change, so that a layer
    without error stays as it is. None where the input has no spread or the system stays singular.
    Source: OSSCAR (Meng et al. 2024), section 3, with the dense model's output as target.
    """
    if moments.xx is None or moments.xe is None or moments.count == 0:
        return None
    xx, xe = moments.xx, moments.xe
    if centred:
        xx = xx - moments.x[:, :, None] * moments.x[:, None] / moments.count
        xe = xe - moments.x[:, :, None] * moments.e[:, None] / moments.count
    inner = xx.shape[-1]
    scale = xx.diagonal(dim1=1, dim2=2).mean(-1)
    if not bool((scale > 0).any()):
        return None
    scale = scale.clamp_min(1e-12 * float(scale.max()))  # a group without spread changes nothing
    eye = torch.eye(inner, dtype=xx.dtype, device=xx.device)
    for _ in range(_ATTEMPTS):
        factor, failed = torch.linalg.cholesky_ex(xx + ridge * scale[:, None, None] * eye)
        if not bool(failed.any()):
            change = torch.cholesky_solve(xe, factor)
            return change if bool(change.isfinite().all()) else None
        ridge = max(ridge, 1e-8) * _SINGULAR
    return None


def best_ridge(fit: Moments, held_out: Moments, centred: bool) -> float | None:
    """Of `RIDGES` the one whose change of the weights has the smallest error on rows that it was
    not made from; None where every one does worse there than the bias alone."""
    found: float | None = None
    least = held_out.error(None, best_shift(fit, None) if centred else None)
    for ridge in RIDGES:
        change = solve(fit, ridge, centred)
        if change is None:
            continue
        error = held_out.error(change, best_shift(fit, change) if centred else None)
        if error < least:
            found, least = ridge, error
    return found


def best_shift(moments: Moments, change: Tensor | None) -> Tensor:
    """The shift [G, O] of the bias that removes the mean error left after `change`."""
    left = moments.e
    if change is not None:
        left = left - (moments.x[:, None] @ change)[:, 0]
    return left / max(1, moments.count)
