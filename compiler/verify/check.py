"""A check's outcome, and when it is a proof."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import VerificationError

TOLERANCE = 1e-4
PROVEN, NOT_PROVEN, SKIPPED, FAILED = "proven", "not proven", "skipped", "failed"
REMEDY = (
    "give example inputs, calibration data or weights on which outputs are finite and depend on "
    "what is cut"
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check's outcome: the worst relative error over the inputs, in which dtype it was judged.

    `sensitivity`: how far a deliberately wrong variant moves what is compared; a check that moves
    by no more than its limit cannot see. `unproven`: why nothing is proven though nothing differed.
    `skipped`: why it was not run (then there is no error).
    """

    name: str
    error: float | None
    dtype: str
    inputs: int
    limit: float = TOLERANCE
    sensitivity: float | None = None
    skipped: str = ""
    unproven: str = ""

    @property
    def state(self) -> str:
        """PROVEN, NOT_PROVEN, SKIPPED or FAILED."""
        if self.error is not None and not self.error <= self.limit:
            return FAILED
        if self.unproven:
            return NOT_PROVEN
        if self.skipped:
            return SKIPPED
        return PROVEN if self.error is not None else FAILED

    @property
    def passed(self) -> bool:
        """Whether nothing was found to differ; this alone is no proof, `state` is."""
        return self.state != FAILED

    def to_json(self) -> dict[str, Any]:
        """All fields, the state beside them; numbers that are not finite as text."""
        data = dataclasses.asdict(self)
        for key in ("error", "sensitivity"):
            if data[key] is not None and not math.isfinite(data[key]):
                data[key] = str(data[key])
        return {**data, "passed": self.passed, "state": self.state}


def not_run(name: str, why: str) -> Check:
    """A check that had to be run and could not be: nothing is proven."""
    return Check(name, None, "-", 0, skipped=why, unproven=why)


def headline(checks: Sequence[Check]) -> str:
    """The line that says what is not proven; '' where everything is."""
    open_ones = [c for c in checks if c.state == NOT_PROVEN]
    if not open_ones:
        return ""
    return "NOT PROVEN: " + "; ".join(f"{c.name} ({c.unproven})" for c in open_ones)


def require_proven(checks: Sequence[Check]) -> None:
    """Raise VerificationError, naming the check and the remedy, when one is not proven."""
    for c in checks:
        if c.state == NOT_PROVEN:
            raise VerificationError(
                f"strict: the {c.name} check is not proven: {c.unproven}; {REMEDY}, or leave "
                "strict out. Nothing was written."
            )


def require(check: Check, blame: Callable[[], str]) -> Check:
    """Raise VerificationError, naming the culprit, when a check failed."""
    if not check.passed:
        raise VerificationError(
            f"the {check.name} check failed: relative error {check.error or 0:.2e} (limit "
            f"{check.limit:.0e}, judged in {check.dtype}); {blame()}. Nothing was written."
        )
    return check
