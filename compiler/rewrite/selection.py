"""How many entries stay, which ones, and which dimensions a pattern names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PlanError
from ..inference.branches import Branch, fits, fits_any
from ..inference.dimensions import Dimension
from ..inference.graph import Graph

_NAMED = 5  # in a message
PREFERENCE = (
    "kv-head",
    "head",
    "query-group",
    "channel",
    "hidden",
    "residual",
    "expert",
    "group",
    "head-dim",
    "other",
)


def matches(dimension: Dimension, patterns: Sequence[str]) -> bool:
    """Whether a shell pattern fits the dimension's name, its kind, a tensor that carries it, or the
    path of a module that holds one. A pattern that is a kind is that kind only."""
    names = (dimension.name, dimension.kind, *(tensor for tensor, _ in dimension.members))
    return any(
        p == dimension.kind if p in PREFERENCE else fits_any(names, p) for p in patterns
    )


def as_patterns(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def require_matches(dimensions: Sequence[Dimension], patterns: Sequence[str]) -> None:
    """Raise PlanError naming a pattern that fits nothing: a silent no-op otherwise."""
    for pattern in patterns:
        if not any(matches(d, [pattern]) for d in dimensions):
            raise PlanError(
                f"pattern '{pattern}' fits no prunable dimension's name, kind, tensors or modules; "
                f"there are {_listed(dimensions)}, and `graph.explain()` lists all."
            )


def require_known(graph: Graph, patterns: Sequence[str], branches: Sequence[Branch] = ()) -> None:
    """Raise PlanError naming a pattern to exclude that protects nothing: it fits no dimension of
    the whole model (one that an earlier round or DropLayers took is known), none of `branches`,
    and is no kind."""
    known = list(graph.whole.dimensions.values())
    for pattern in patterns:
        if pattern in PREFERENCE or any(matches(d, [pattern]) for d in known):
            continue
        if not any(fits(branch, [pattern]) for branch in branches):
            raise PlanError(
                f"exclude='{pattern}' protects nothing: it fits no dimension's name, kind, "
                f"tensors or modules; there are {_listed(known)}, and `prunec explain` and "
                "`graph.explain()` list all."
            )


def _listed(dimensions: Sequence[Dimension]) -> str:
    """The kinds, and some names."""
    names = [d.name for d in dimensions]
    found = [*sorted({d.kind for d in dimensions}), *names[:_NAMED]]
    return ", ".join(found) + (", ..." if len(names) > _NAMED else "") or "none"


def check_ratio(ratio: float) -> None:
    """Raise PlanError unless 0 <= ratio < 1 (the share removed)."""
    if not 0 <= ratio < 1:
        raise PlanError(f"ratio is the share removed and lies in [0, 1), not {ratio}.")


def kept_count(dimension: Dimension, ratio: float, round_to: int = 1) -> int:
    """Entries kept when `ratio` is removed: the nearest multiple of `round_to` (ties keep more),
    never 0, never below the dimension's minimum, never above its size."""
    if ratio == 0:
        return dimension.size
    wanted = dimension.size * (1 - ratio)
    count = math.floor(wanted / round_to + 0.5 + 1e-9) * round_to
    low = max(dimension.minimum, min(round_to, dimension.size))
    return max(low, min(count, dimension.size))


def lowest(scores: Tensor, count: int) -> Tensor:
    """The `count` entries with the lowest scores; ties go by index, so the same input gives the
    same plan (int64)."""
    return torch.argsort(scores, stable=True)[:count]


def one_factor_each(
    dimensions: Sequence[Dimension], taken: Sequence[str], explicit: Sequence[str] = ()
) -> list[Dimension]:
    """Of dimensions that share a product keep one, so halving a product halves it once: whole heads
    before head widths, channels before groups, then the largest. Those next to an already planned
    one (`taken`) are left out, those named `explicit` stay."""
    chosen: list[Dimension] = []
    blocked = set(taken)
    for d in sorted(dimensions, key=lambda d: (PREFERENCE.index(d.kind), -d.size)):
        named = bool(explicit) and matches(d, explicit)
        if named or not (set(d.partners) & blocked):
            chosen.append(d)
            blocked.add(d.name)
    order = {d.name: i for i, d in enumerate(dimensions)}
    return sorted(chosen, key=lambda d: order[d.name])
