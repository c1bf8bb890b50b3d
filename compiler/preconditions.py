"""What can be refused of a compile, before anything is captured."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from typing import Any

from .device import check_device
from .errors import PlanError, TargetError
from .option_types import shown
from .target import Target


def refuse_arguments(
    target: Target, floor: float, rounds: int, checkpoint: Any, device: Any
) -> None:
    """Raise TargetError or PlanError, naming it, for the first argument of `compile`, of the right
    type, that is out of range, or a place that cannot be used."""
    if not isinstance(target, Target):
        raise TargetError(f"target is a Target, as in Target(speedup=2.0), not {shown(target)}.")
    if not 0 <= floor <= 1:
        raise PlanError(f"floor={floor!r} is no share of the original's value: give 0 to 1.")
    if rounds < 1:
        raise PlanError(f"rounds={rounds!r} must be a whole number, at least 1.")
    check_device(device, word="device=")
    if checkpoint is not None:
        refuse_unwritable(checkpoint, "checkpoint")


def refuse_unwritable(directory: Any, what: str) -> None:
    """Raise PlanError where no file can be made in a directory, which itself may be made."""
    try:
        place = pathlib.Path(directory)
        missing = [path for path in (place, *place.parents) if not path.exists()]
        place.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"?")
                file.flush()
        finally:
            for path in missing:
                with contextlib.suppress(OSError):
                    path.rmdir()
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PlanError(
            f"{what} {directory!s} cannot be written to ({reason}): give another directory."
        ) from error
