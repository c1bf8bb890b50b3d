"""Which widths to measure a model at, so that every op is seen at every pair of its widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ir.terms import Var

FINE = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # where every op has one width at most
COARSE = (1 / 4, 1 / 2, 3 / 4)  # a time that is a product of two widths is exact between few points
LEVELS = len(COARSE) + 2  # a prime number, so that the columns below are orthogonal
# From this size on, grid points are multiples of that: what lies between them is guessed fast, and
# measured where it is used, so that a slow width is found out; a fast one would not be.
MULTIPLES = ((512, 64), (128, 32), (32, 16))


def assignments(
    lowest: Mapping[Var, int], together: Sequence[frozenset[Var]]
) -> list[dict[Var, int]]:
    """Sizes of all variables, one dictionary for each run; `together`: those that meet in an op.

    Where no two meet, all go through their levels at once. Otherwise an orthogonal array of
    strength 2 (Bush 1952) over colours such that variables which meet differ in colour: 25 runs
    show every op at all 5 x 5 levels of two widths. Beyond six colours some pairs are confounded.
    """
    meets: dict[Var, set[Var]] = {v: set() for v in lowest}
    for group in together:
        for v in group:
            meets[v] |= group - {v}
    if not any(meets.values()):
        levels = {v: _levels(v.size, low, FINE) for v, low in lowest.items()}
        count = max(map(len, levels.values()), default=0)
        return [{v: own[min(i, len(own) - 1)] for v, own in levels.items()} for i in range(count)]
    colour: dict[Var, int] = {}
    for v in sorted(meets, key=lambda v: (-len(meets[v]), v.serial)):
        used = {colour[o] for o in meets[v] if o in colour}
        colour[v] = next((c for c in range(LEVELS + 1) if c not in used), len(colour) % LEVELS)
    levels = {v: _levels(v.size, low, COARSE) for v, low in lowest.items()}
    runs: list[dict[Var, int]] = []
    for a in range(LEVELS):
        for b in range(LEVELS):
            columns = (a, b, *((a + k * b) % LEVELS for k in range(1, LEVELS)))
            runs.append(
                {v: own[min(columns[colour[v]], len(own) - 1)] for v, own in levels.items()}
            )
    return runs


def _levels(size: int, lowest: int, shares: Sequence[float]) -> list[int]:
    """Sizes to measure at, ascending: the lowest, shares at multiples, the full size."""
    step = next((m for least, m in MULTIPLES if size >= least), 1)
    between = [round(size * share / step) * step for share in shares]
    return sorted({lowest, size, *(w for w in between if lowest < w < size)})
