"""Two models timed side by side, so that what disturbs one disturbs the other.

Rounds run before, after, before, after..., each round in the opposite order of the last. `control`
is the same ratio of the first model against itself, from the same rounds: how far it is from 1 is
how far any ratio of this run can be trusted.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ..errors import MeasureError
from .environment import describe

Call = Callable[[], object]
Sample = Callable[[Call, int, torch.device], Callable[[], float]]

_SAMPLE_SECONDS = 2e-3
_CALLS_PER_SAMPLE = 100
_ROUNDS = 200
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median and quartiles over `runs` samples."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Before against after on one device.

    `ratio` is median before / median after, above 1 when after is faster; `ratio_low` and
    `ratio_high` bound it by a bootstrap 95 % interval over rounds. `control` is before / before.
    `batch` is the size of axis 0 of the inputs, `versions` the environment (`describe`). Peak
    bytes are weights plus activations of one call, on CUDA under torch; None elsewhere. `attempts`:
    how often the pair was timed until it was steady; this is the steadiest of them.
    """

    before: Timing
    after: Timing
    ratio: float
    ratio_low: float
    ratio_high: float
    control: float
    runtime: str
    device: str
    batch: int | None
    dtype: str | None
    threads: int
    versions: dict[str, Any]
    peak_before_bytes: int | None = None
    peak_after_bytes: int | None = None
    attempts: int = 1

    @property
    def steady(self) -> bool:
        """Whether the model timed against itself came out within 5 % of 1."""
        return abs(self.control - 1) <= 0.05

    @property
    def throughput(self) -> float:
        """Samples a second that `after` takes."""
        return (self.batch or 1) * 1e3 / max(self.after.median_ms, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """All fields, and `steady` and `throughput`, as JSON types."""
        return dataclasses.asdict(self) | {"steady": self.steady, "throughput": self.throughput}


def compare(
    before: Call,
    after: Call,
    *,
    device: torch.device | str = "cpu",
    min_rounds: int = 15,
    max_seconds: float = 6.0,
    warmup_seconds: float = 1.0,
    runtime: str = "torch",
    seed: int = 0,
    attempts: int = 1,
) -> Comparison:
    """Time two calls in turn until `max_seconds` have passed, and `min_rounds` rounds at least.

    Both run in inference mode, warmed up for up to 20 calls or `warmup_seconds` each. A call well
    under 2 ms is repeated within a sample. On CUDA the time is between two events, the device idle
    before each sample: otherwise one model's launches would hide behind the other's kernels.
    onnxruntime has a stream of its own, so for that runtime the wall clock is read. When the
    control is off, all is timed again, up to `attempts` times; the steadiest timing is returned.

    Raises:
        MeasureError: fewer than 4 rounds are asked for.
    """
    if min_rounds < 4:
        raise MeasureError(f"{min_rounds} rounds say nothing about spread: ask for 4 or more.")
    device = torch.device(device)
    environment = describe(device)
    sample = sampler(device, runtime)
    pair = (before, after)
    best: Comparison | None = None
    for attempt in range(1, max(attempts, 1) + 1):
        times = _rounds(pair, device, sample, min_rounds, max_seconds, warmup_seconds)
        found = _summary(times[0], times[1], seed, environment, runtime)
        if best is None or abs(found.control - 1) < abs(best.control - 1):
            best = found
        best = dataclasses.replace(best, attempts=attempt)
        if best.steady:
            break
    assert best is not None
    return best


def _rounds(
    pair: tuple[Call, Call],
    device: torch.device,
    sample: Sample,
    min_rounds: int,
    max_seconds: float,
    warmup_seconds: float,
) -> list[torch.Tensor]:
    """Milliseconds of each side, one value a round."""
    with torch.inference_mode():
        counts = [_warm_up(call, device, warmup_seconds) for call in pair]
        rounds: list[dict[int, Callable[[], float]]] = []
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter()
            for order in itertools.islice(itertools.cycle(((0, 1), (1, 0))), _ROUNDS):
                if len(rounds) >= min_rounds and time.perf_counter() - start > max_seconds:
                    break
                rounds.append({side: sample(pair[side], counts[side], device) for side in order})
        finally:
            if collecting:
                gc.enable()
        _synchronise(device)
    return [torch.tensor([r[side]() for r in rounds], dtype=torch.float64) for side in (0, 1)]


def sampler(device: torch.device, runtime: str) -> Sample:
    """What times some calls on a device: it returns a function that gives milliseconds a call."""
    events = device.type == "cuda" and runtime != "onnxruntime"
    return _event_sample if events else _clock_sample


def _clock_sample(call: Call, count: int, device: torch.device) -> Callable[[], float]:
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    _synchronise(device)
    milliseconds = (time.perf_counter() - start) * 1e3 / count
    return lambda: milliseconds


def _event_sample(call: Call, count: int, device: torch.device) -> Callable[[], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _synchronise(device)
    stream = torch.cuda.current_stream(device)
    start.record(stream)
    for _ in range(count):
        call()
    end.record(stream)
    return lambda: start.elapsed_time(end) / count


def _warm_up(call: Call, device: torch.device, seconds: float) -> int:
    """Run `call` until it is warm; return how many calls make one sample."""
    fastest, start = math.inf, time.perf_counter()
    for done in range(20):
        if done >= 2 and time.perf_counter() - start > seconds:
            break
        fastest = min(fastest, _clock_sample(call, 1, device)() / 1e3)
    return max(1, min(_CALLS_PER_SAMPLE, math.ceil(_SAMPLE_SECONDS / max(fastest, 1e-9))))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(
    before: torch.Tensor, after: torch.Tensor, seed: int, environment: dict[str, Any], runtime: str
) -> Comparison:
    generator = torch.Generator().manual_seed(seed)
    rounds = len(before)
    # Rounds are drawn, not samples: what disturbed a round disturbed both of its samples.
    drawn = torch.randint(rounds, (_RESAMPLES, rounds), generator=generator)
    ratios = _median(before[drawn]) / _median(after[drawn])
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    # Two rounds to each half in turn, so that each half has both orders.
    half = torch.arange(rounds) // 2 % 2 == 0
    return Comparison(
        before=_timing(before),
        after=_timing(after),
        ratio=(_median(before) / _median(after)).item(),
        ratio_low=low,
        ratio_high=high,
        control=(_median(before[half]) / _median(before[~half])).item(),
        runtime=runtime,
        device=environment["device"],
        batch=None,
        dtype=None,
        threads=environment["threads"],
        versions=environment,
    )


def _median(times: torch.Tensor) -> torch.Tensor:
    return torch.quantile(times, 0.5, dim=-1)


def _timing(times: torch.Tensor) -> Timing:
    low, median, high = torch.quantile(
        times, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    ).tolist()
    return Timing(median_ms=median, low_ms=low, high_ms=high, runs=len(times))
