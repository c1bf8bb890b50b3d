"""How long one call takes, alone."""

from __future__ import annotations

import math
import statistics
import time

import torch

from ..measure.timing import Call, sampler

SAMPLES = 7
SECONDS = 0.02  # of one op, at most, once it has its fewest samples
FEWEST = 3
SAMPLE_SECONDS = 1e-3
WARM = 3


def op_milliseconds(call: Call, device: torch.device, runtime: str = "torch") -> float:
    """Milliseconds of one call: the median of a few samples. Calls well under a millisecond are
    repeated within a sample."""
    sample = sampler(device, runtime)
    with torch.inference_mode():
        fastest = math.inf
        for _ in range(WARM):
            fastest = min(fastest, sample(call, 1, device)())
        count = max(1, min(200, math.ceil(SAMPLE_SECONDS * 1e3 / max(fastest, 1e-6))))
        start = time.perf_counter()
        found: list[float] = []
        while len(found) < SAMPLES:
            if len(found) >= FEWEST and time.perf_counter() - start > SECONDS:
                break
            found.append(sample(call, count, device)())
    return statistics.median(found)
