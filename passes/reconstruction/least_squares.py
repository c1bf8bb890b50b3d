"""Ridge regression of a layer's error on its input, from moments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..calibration.moments import Moments

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
    xx, xe = moments.covered(centred), moments.xe
    if centred:
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


def spread(moments: Moments, centred: bool) -> Tensor:
    """The sums of squares of each input, about its mean with `centred`: [G, D]."""
    assert moments.xx is not None
    squares = moments.xx.diagonal(dim1=1, dim2=2)
    return squares - moments.x.square() / moments.count if centred else squares


def best_shift(moments: Moments, change: Tensor | None) -> Tensor:
    """The shift [G, O] of the bias that removes the mean error left after `change`."""
    left = moments.e
    if change is not None:
        left = left - (moments.x[:, None] @ change)[:, 0]
    return left / max(1, moments.count)
