"""The fewest entries of every dimension at which its predicted error stays below a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...compiler.errors import TargetError
from ...compiler.inference.dimensions import Dimension


def widths_within(
    dimensions: Sequence[Dimension], errors: Mapping[str, Tensor] | None, bound: float
) -> dict[str, int]:
    """Per dimension the smallest width w with sqrt(errors[w]) <= bound, the relative error at its
    consumers; never below its minimum. A dimension without a curve keeps its size.

    Raises TargetError when no dimension has a curve.
    """
    known = errors or {}
    if not any(d.name in known for d in dimensions):
        raise TargetError(
            "a target of error needs error curves, and no pass measured any; put SecondOrderScore "
            "before AllocateWidths, with calibration data."
        )
    return {
        d.name: _fewest(d, known[d.name], bound) if d.name in known else d.size for d in dimensions
    }


def _fewest(dimension: Dimension, curve: Tensor, bound: float) -> int:
    if curve.shape != (dimension.size + 1,):
        raise TargetError(
            f"the error curve of '{dimension.name}' has shape {tuple(curve.shape)}, not "
            f"({dimension.size + 1},); it holds one value for every width, 0 included."
        )
    within = (curve.double().clamp(min=0).sqrt() <= bound).nonzero().reshape(-1)
    width = int(within[0]) if len(within) else dimension.size
    return min(max(width, dimension.minimum), dimension.size)
