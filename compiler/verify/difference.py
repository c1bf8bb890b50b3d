"""How far two lists of outputs are apart, and whether there was anything to compare.

An error is relative to the largest value of the tensor, and slice by slice, along every axis, to
the largest of the slice: one column of large values hides no other one. Below `FLOOR` of the
tensor's largest value a slice counts as that large. What is no tensor is compared by ==.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-6
ROUNDING = 8.0  # times its own distance from float64 that a value may be off by rounding


@dataclasses.dataclass(frozen=True)
class Difference:
    """`error`: the worst over outputs, tensors and slices; `whole`: by tensors alone; `blind`: the
    outputs, by number, that have values and none that is finite."""

    error: float
    whole: float
    blind: frozenset[int] = frozenset()


def relative_error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The error of `difference`."""
    return difference(found, expected).error


def difference(
    found: Sequence[Any],
    expected: Sequence[Any],
    exact: Sequence[Any] | None = None,
    least: float = 0.0,
) -> Difference:
    """Compare outputs; the error is inf where shapes, non-finite places, integers or what is no
    tensor differ.

    `exact`: the expected outputs in float64. With it a slice may be off by what rounding explains:
    a few times the distance of the expected one from the exact one. `least`: tensors
    and slices of smaller values than this are taken to be of this size.
    """
    if len(found) != len(expected):
        return Difference(math.inf, math.inf)
    error = whole = 0.0
    blind: set[int] = set()
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(b, Tensor) or not isinstance(a, Tensor):
            gap = _plain(a, b)
            error, whole = max(error, gap), max(whole, gap)
            continue
        if a.shape != b.shape:
            return Difference(math.inf, math.inf, frozenset(blind))
        if b.numel() == 0 or b.device.type == "meta":  # no values: shapes are all there is
            continue
        if not b.is_floating_point() and not b.is_complex():
            if not torch.equal(a, b):
                return Difference(math.inf, math.inf, frozenset(blind))
            continue
        true = exact[place] if exact is not None else None
        own, total, seen = _floats(a, b, true if isinstance(true, Tensor) else None, least)
        error, whole = max(error, own), max(whole, total)
        if not seen:
            blind.add(place)
    return Difference(error, whole, frozenset(blind))


def _plain(a: Any, b: Any) -> float:
    """0 where two values that are no tensors agree; two floats by their distance."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return math.inf
    if type(a) is float and type(b) is float and math.isfinite(a) and math.isfinite(b):
        return abs(a - b) / max(abs(b), 1e-30) if a != b else 0.0
    try:
        same = bool(a == b) or (a != a and b != b)
    except Exception:  # an object that cannot be compared says nothing by itself
        same = type(a) is type(b)
    return 0.0 if same else math.inf


def _floats(
    a: Tensor, b: Tensor, exact: Tensor | None, least: float
) -> tuple[float, float, bool]:
    """(worst error by slice and tensor, that by tensor, whether anything finite was compared)."""
    x, y = _real(a), _real(b)
    if not _same_places(x, y):
        return math.inf, math.inf, True
    finite = torch.isfinite(y)
    if not bool(finite.any()):
        return 0.0, 0.0, False
    if not bool(finite.all()):
        x, y = torch.where(finite, x, 0), torch.where(finite, y, 0)
    gap, size = (x - y).abs(), y.abs()
    scale = size.max().clamp_min(least)
    whole = float(gap.max().double() / scale.double().clamp_min(1e-30))
    if whole == 0:
        return 0.0, 0.0, True
    off = None
    if exact is not None:
        true = _real(exact).to(torch.float64)
        off = torch.where(torch.isfinite(true) & finite, (y.double() - true).abs(), 0.0)
    worst = whole
    for axis in range(y.dim()):
        g, s = (_largest(t, axis).double() for t in (gap, size))
        if off is not None:
            g = (g - ROUNDING * _largest(off, axis)).clamp_min(0)
        low = max(FLOOR * float(scale), least, 1e-30)
        worst = max(worst, float((g / s.clamp_min(low)).max()))
    return worst, whole, True


def largest(values: Sequence[Any]) -> float:
    """The largest finite value of all float tensors among these."""
    sizes = [
        float(torch.nan_to_num(_real(x), 0.0, 0.0, 0.0).abs().max())
        for x in values
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel() and not x.is_meta
    ]
    return max(sizes, default=0.0)


def _real(x: Tensor) -> Tensor:
    """As real numbers of single precision at least."""
    x = x.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _same_places(x: Tensor, y: Tensor) -> bool:
    """Whether NaN and both infinities stand in the same places."""
    if bool(torch.isfinite(x).all()) and bool(torch.isfinite(y).all()):
        return True
    kinds = (torch.isnan, torch.isposinf, torch.isneginf)
    return all(torch.equal(kind(x), kind(y)) for kind in kinds)


def _largest(x: Tensor, axis: int) -> Tensor:
    """The largest value of each slice along an axis."""
    others = [a for a in range(x.dim()) if a != axis]
    return x.amax(others) if others else x
