"""Coefficients of the losses, found by trying: allocations are scored by what the outputs lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from .allocation import Allocation

SPREAD = 1.0  # of the logarithm of a coefficient that is drawn anew
SHARE = 0.25  # of the coefficients drawn anew in one trial, at least one


@dataclasses.dataclass
class CoefficientSearch:
    """A random local search over one coefficient for each dimension's loss.

    A sum of losses knows nothing of how the layers' errors meet in the outputs; `error` measures
    that for whole allocations on calibration data. `trials` are made from the best so far, in
    each of which some coefficients are drawn anew. Source: Frantar and Alistarh, "SPDY" (2022),
    section 3.3, whose search it is but for the schedule of neighbourhoods.
    """

    error: Callable[[Allocation], float]
    trials: int
    seed: int = 0

    def run(
        self, names: list[str], solve: Callable[[Mapping[str, float]], Allocation | None]
    ) -> dict[str, float]:
        """The coefficients whose allocation, by `solve`, has the smallest error."""
        generator = np.random.default_rng(self.seed)
        best = dict.fromkeys(names, 1.0)
        known: dict[tuple[object, ...], float] = {}

        def score(coefficients: Mapping[str, float]) -> float:
            found = solve(coefficients)
            if found is None:
                return float("inf")
            if found.key not in known:
                error = self.error(found)
                known[found.key] = error if np.isfinite(error) else float("inf")
            return known[found.key]

        least = score(best)
        for _ in range(self.trials):
            drawn = generator.permutation(names)[: max(1, round(SHARE * len(names)))]
            factors = np.exp(generator.normal(0.0, SPREAD, len(drawn)))
            tried = {**best, **{str(n): float(f) for n, f in zip(drawn, factors, strict=True)}}
            error = score(tried)
            if error < least:
                best, least = tried, error
        return best
