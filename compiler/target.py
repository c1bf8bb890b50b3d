"""What a compile aims at."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from .errors import TargetError
from .option_types import shown, takes

SHARES = ("width", "params", "macs", "bytes")
AIMS = (*SHARES, "speedup", "latency_ms", "error")
RUNTIMES = ("torch", "compile", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Target:
    """One aim. `width`, `params`, `macs`, `bytes`: the share kept, in (0, 1]; `width` is that of
    every prunable dimension, one factor per product. `speedup`: a factor >= 1. `latency_ms`:
    absolute. `error`: a bound on each dimension's predicted relative error at its consumers, by
    which as much goes as it allows; it needs a score that measures error curves. A speed target is
    for a runtime ("torch", "compile", "onnxruntime"), a batch (None: that of the example inputs)
    and the model's dtype; with another aim, the result is also timed there.

    Raises TargetError for none, several, or a value out of range.
    """

    width: float | None = None
    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    error: float | None = None
    runtime: str = "torch"
    batch: int | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Target:
        try:
            inspect.signature(cls.__init__).bind(None, *args, **kwargs)
        except TypeError as error:
            raise TargetError(
                f"Target: {error}; it has {', '.join(AIMS)}, and beside one of them runtime, batch."
            ) from error
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in AIMS:
            if not takes(float | None, value := getattr(self, name)):
                raise TargetError(f"{name} is a finite number, not {shown(value)}.")
        given = [k for k in AIMS if getattr(self, k) is not None]
        if len(given) != 1:
            raise TargetError(
                f"a target names one aim, not {given or 'none'}; choose one of {', '.join(AIMS)}."
            )
        value = self.value
        if self.kind in SHARES and not 0 < value <= 1:
            raise TargetError(f"{self.kind} is the share kept and lies in (0, 1], not {value}.")
        if self.kind == "speedup" and value < 1:
            raise TargetError(f"speedup is a factor of at least 1, not {value}.")
        if value <= 0:
            raise TargetError(f"{self.kind} must be positive, not {value}.")
        if self.runtime not in RUNTIMES:
            raise TargetError(
                f"runtime is one of {', '.join(RUNTIMES)}, not {shown(self.runtime)}."
            )
        if not takes(int | None, self.batch) or (self.batch is not None and self.batch < 1):
            raise TargetError(f"batch is a number of samples, at least 1, not {shown(self.batch)}.")

    @property
    def kind(self) -> str:
        """The name of the aim."""
        return next(k for k in AIMS if getattr(self, k) is not None)

    @property
    def value(self) -> float:
        """Its value."""
        return float(getattr(self, self.kind))

    @property
    def measured(self) -> bool:
        """Whether reaching it is a matter of measurement."""
        return self.kind in ("speedup", "latency_ms")

    def with_value(self, value: float) -> Target:
        """The same aim at another value."""
        return dataclasses.replace(self, **{self.kind: value})

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"

    @classmethod
    def parse(cls, text: str, runtime: str = "torch", batch: int | None = None) -> Target:
        """Read `speedup=2`, `params=0.5`... Raises TargetError with the form expected."""
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.eE+-]+)x?\s*", text)
        if match is None or match.group(1) not in AIMS:
            raise TargetError(
                f"target '{text}' is not understood; write NAME=VALUE with NAME one of "
                f"{', '.join(AIMS)}, as in speedup=2."
            )
        try:
            value = float(match.group(2))
        except ValueError as error:
            raise TargetError(f"target '{text}' has no number in it.") from error
        return cls(**{match.group(1): value}, runtime=runtime, batch=batch)  # type: ignore[arg-type]

    @classmethod
    def parse_several(
        cls, text: str, runtime: str = "torch", batch: int | None = None
    ) -> list[Target]:
        """Read `1.3,1.5,2` (speed-ups) or `params=0.7,0.5`. Raises TargetError."""
        name, given, values = text.rpartition("=")
        name = name if given else "speedup"
        return [cls.parse(f"{name}={value}", runtime, batch) for value in values.split(",")]
