"""What AllocateWidths chooses: for each dimension, or a group kept equal, one of some widths; for
a branch whether it stays."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...compiler.inference.dimensions import Dimension
from ...compiler.rewrite.selection import kept_count

if TYPE_CHECKING:
    from .depth import Depth

STEPS = 16, 32  # shares k / STEPS of a dimension are candidates: snapped, and as they are
SNAPS = ((1024, 64), (256, 16), (32, 8))  # from this size on, to multiples of that
FEW = 32  # a dimension of so many entries may have every width
NOTHING_LEFT = 1 - 1e-6  # the largest share lost, as far as its logarithm goes
EXACT = 1e-12  # an error below is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Dimensions that get one width, ascending candidate `widths`, and the loss of each.

    Of a `branch` the widths are 0 (dropped) and 1. `within`: the innermost branch that holds all of
    it; what is in a dropped branch costs nothing and loses nothing by itself.
    """

    dimensions: tuple[Dimension, ...]
    widths: tuple[int, ...]
    losses: np.ndarray
    branch: str = ""
    within: str = ""


def loss_curve(dimension: Dimension, scores: Tensor, errors: Tensor | None) -> np.ndarray:
    """Loss by width, float64 [size + 1], 0 at the full width: -k log(1 - e / k), so that a sum of
    losses is the log of the share of the signal that passes all dimensions. A plain sum of errors
    would end whole layers, whose error cannot exceed 1.

    e is the relative squared error where there is a curve of it, summed over k readers (what it is
    with nothing kept); else the share of the squared importance that goes, lowest first.
    """
    if errors is not None:
        lost = errors.double().cpu().numpy().clip(min=0)
    else:
        squared = np.sort(scores.double().cpu().numpy() ** 2)
        lost = np.concatenate([[0.0], np.cumsum(squared)])[::-1]
        total = squared.sum()
        lost = lost / total if total > 0 else np.linspace(1.0, 0.0, dimension.size + 1)
    lost = np.maximum.accumulate(lost[::-1])[::-1]  # never rising with width
    readers = max(1.0, float(lost[0]))
    return -readers * np.log1p(-(lost / readers).clip(max=NOTHING_LEFT))


def loss_of(error: float) -> float:
    """The same for one relative squared error of the outputs."""
    return -math.log1p(-min(max(error, 0.0), NOTHING_LEFT))


def choices(
    dimensions: Sequence[Dimension],
    curves: Mapping[str, np.ndarray],
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    depth: Depth | None = None,
    round_to: int = 1,
    uniform: bool = False,
    snap: bool = True,
    ties: Sequence[Sequence[str]] = (),
    multiples: Mapping[str, int] | None = None,
) -> list[Choice]:
    """One choice for each dimension or set of `ties`, of its `candidates` from its lowest width to
    its highest, which are `multiples` by name. Then one for each branch of `depth`."""
    found: list[Choice] = []
    for group in equal_widths(dimensions, ties, uniform):
        floor = max(lowest[d.name] for d in group)
        total = np.sum([curves[d.name] for d in group], axis=0)
        most = max(floor, min(highest[d.name] for d in group))
        steps = [(multiples or {}).get(d.name, 1) for d in group]
        widths = candidates(most, floor, math.lcm(round_to, *steps), total, snap)
        within = depth.holder(group[0]) if depth is not None and len(group) == 1 else ""
        found.append(Choice(tuple(group), widths, total[list(widths)], within=within))
    for name in depth.names if depth is not None else ():
        around = depth.nesting.around[name]  # type: ignore[union-attr]
        within = around[0] if around else ""
        found.append(Choice((), (0, 1), curves[name], branch=name, within=within))
    return found


def equal_widths(
    dimensions: Sequence[Dimension], ties: Sequence[Sequence[str]] = (), uniform: bool = False
) -> list[list[Dimension]]:
    """Dimensions in sets that get one width: those of `ties` (names, all of one size), with
    `uniform` also repeated layers, which are those of one kind and size whose names differ in
    numbers only; what is in two sets joins them."""
    tied = {name: ("tie", i) for i, group in enumerate(ties) for name in group}
    sets: dict[object, dict[str, Dimension]] = {}
    for d in dimensions:
        keys: list[object] = [tied.get(d.name, d.name)]
        if uniform:
            keys.append((re.sub(r"\d+", "*", d.name), d.kind, d.size))
        joined: dict[str, Dimension] = {}
        for own in {id(sets[k]): sets[k] for k in keys if k in sets}.values():
            joined.update(own)
        joined[d.name] = d
        for key in [*keys, *(k for k, own in sets.items() if own.keys() & joined.keys())]:
            sets[key] = joined
    return list({id(own): list(own.values()) for own in sets.values()}.values())


def candidates(
    size: int, floor: int, round_to: int, curve: np.ndarray, snap: bool = True
) -> tuple[int, ...]:
    """Widths worth trying, ascending, the floor and the size among them: even shares, where the
    loss becomes nothing, and with `snap` at multiples that hardware likes."""
    likes = next((m for least, m in SNAPS if size >= least), 1) if snap else 1
    step, steps = (round_to if round_to > 1 else likes), STEPS[0 if snap else 1]
    if size <= FEW:
        found = set(range(floor, size + 1))
    else:
        found = {round(size * k / steps / step) * step for k in range(1, steps)}
        found.add(int(np.argmax(curve <= EXACT)))
    if round_to > 1:
        found = {math.ceil(w / round_to) * round_to for w in found}
    return tuple(sorted({w for w in found if floor <= w <= size} | {floor, size}))


def lowest_width(dimension: Dimension, share: float, round_to: int) -> int:
    """The fewest entries that may stay when at least `share` of them must."""
    return max(dimension.minimum, kept_count(dimension, 1 - share, round_to))
