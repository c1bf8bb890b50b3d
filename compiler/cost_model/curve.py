"""Time of an op as a function of its widths: through measured points, interpolated in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..inference.dimensions import width_of
from ..ir.terms import Term, Var, known_size, variables

Position = tuple[float, ...]


class Axis:
    """Variables that an op's axes tie together, and the term whose size says where they stand."""

    def __init__(self, own: Sequence[Var], terms: Sequence[Term]) -> None:
        self.variables = tuple(own)
        inside = [t for t in terms if set(variables(t)) & set(own)]
        self.term = max(inside, key=lambda t: (len(set(variables(t)) & set(own)), known_size(t)))

    def position(self, sizes: Mapping[Var, int]) -> float:
        """How wide the axis is at these sizes."""
        return float(width_of(self.term, dict(sizes)))


def axes_of(terms: Sequence[Term], chosen: frozenset[Var]) -> list[Axis]:
    """The widths of an op that may change on their own: variables that share no axis of it."""
    groups: list[set[Var]] = []
    for term in terms:
        own = set(variables(term)) & chosen
        if own:
            joined = [g for g in groups if g & own]
            groups = [g for g in groups if not g & own] + [own.union(*joined)]
    order = list(dict.fromkeys(v for term in terms for v in variables(term)))
    listed = [sorted(g, key=order.index) for g in groups]
    return [Axis(own, terms) for own in sorted(listed, key=lambda own: order.index(own[0]))]


class Curve:
    """Milliseconds over the positions of some axes.

    `add` gives points: those of the `grid` are what the curve is drawn through, made monotone (a
    smaller op that measures slower there is noise); others are exact, so that a step of the
    hardware at a width that is used counts. One axis and complete grids of two are interpolated
    linearly; anything else is fitted by a constant, the axes and their product.
    """

    def __init__(self) -> None:
        self.exact: dict[Position, list[float]] = {}
        self._grid: dict[Position, list[float]] = {}
        self._drawn: tuple[list[np.ndarray], np.ndarray] | None = None
        self._fit: np.ndarray | None = None

    def add(self, position: Position, milliseconds: float, grid: bool = False) -> None:
        """One measurement."""
        (self._grid if grid else self.exact).setdefault(position, []).append(milliseconds)
        self._drawn = self._fit = None

    def at(self, position: Position) -> float:
        """Milliseconds at a position on each axis."""
        known = self.exact.get(position)
        if known is not None:
            return float(np.median(known))
        if self._drawn is None and self._fit is None:
            self._draw()
        if self._drawn is None:
            assert self._fit is not None
            return max(0.0, float(_features(np.array([position]))[0] @ self._fit))
        grids, values = self._drawn
        for grid, where in zip(grids, position, strict=True):
            values = _interpolated(grid, values, where)
        return float(values)

    def _draw(self) -> None:
        points = {p: float(np.median(v)) for p, v in self._grid.items()}
        grids = [np.array(sorted(set(axis))) for axis in zip(*points, strict=True)]
        shape = tuple(map(len, grids))
        if len(grids) <= 2 and len(points) == np.prod(shape):
            values = np.array([points[p] for p in sorted(points)]).reshape(shape)
            self._drawn = grids, _monotone(values)
        else:
            places, times = np.array(list(points)), np.array(list(points.values()))
            self._fit = _non_negative(_features(places), times)


def _interpolated(grid: np.ndarray, values: np.ndarray, where: float) -> np.ndarray:
    """Linear along the first axis, constant beyond the ends."""
    if len(grid) == 1:
        return values[0]
    i = int(np.clip(np.searchsorted(grid, where), 1, len(grid) - 1))
    along = np.clip((where - grid[i - 1]) / (grid[i] - grid[i - 1]), 0, 1)
    return values[i - 1] * (1 - along) + values[i] * along


def _monotone(values: np.ndarray) -> np.ndarray:
    """Not falling along any axis: the middle of the tightest such bounds above and below."""
    for axis in range(values.ndim):
        up = np.maximum.accumulate(values, axis=axis)
        down = np.flip(np.minimum.accumulate(np.flip(values, axis), axis=axis), axis)
        values = (up + down) / 2
    return values


def _features(places: np.ndarray) -> np.ndarray:
    """A constant, each axis, and the product of all."""
    product = places.prod(axis=1, keepdims=True)
    return np.concatenate([np.ones_like(product), places, product], axis=1)


def _non_negative(features: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Least squares on relative errors; a coefficient below 0 is dropped and the rest solved
    again."""
    weight = 1 / np.maximum(times, 1e-9)
    scaled, target = features * weight[:, None], times * weight
    used = list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        solved = np.linalg.lstsq(scaled[:, used], target, rcond=None)[0]
        if (solved >= 0).all():
            found[used] = solved
            break
        used.pop(int(np.argmin(solved * np.linalg.norm(scaled[:, used], axis=0))))
    return found
