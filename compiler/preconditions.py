"""What can be refused of a compile, before anything is captured."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .device import check_device
from .errors import PlanError, TargetError
from .option_types import shown
from .target import Target


def refuse_arguments(
    target: Target,
    calibration: Any,
    train: Any,
    floor: float,
    rounds: int,
    checkpoint: Any,
    device: Any,
    options: Any,
) -> None:
    """Raise TargetError or PlanError, naming it, for the first argument of `compile`, of the right
    type, that is out of range, gives no batches, or is a place that cannot be written to."""
    if not isinstance(target, Target):
        raise TargetError(f"target is a Target, as in Target(speedup=2.0), not {shown(target)}.")
    if not 0 <= floor <= 1:
        raise PlanError(f"floor={floor!r} is no share of the original's value: give 0 to 1.")
    if rounds < 1:
        raise PlanError(f"rounds={rounds!r} must be a whole number, at least 1.")
    for name, given in (("calibration", calibration), ("train", train)):
        _refuse_unbatched(name, given)
    if not all(isinstance(own, Mapping) for own in (options or {}).values()):
        raise PlanError(
            f"options={options!r} is no table of tables: give options by the name of the pass, as"
            ' in {"distill": {"steps": 100}}.'
        )
    check_device(device, word="device=")
    if checkpoint is not None:
        refuse_unwritable(checkpoint, "checkpoint")


def _refuse_unbatched(name: str, given: Any) -> None:
    """Raise PlanError for what does not give batches, or would give rows, keys or letters."""
    if given is None:
        return
    whole = isinstance(given, (Tensor, Mapping, str, bytes))
    reads = isinstance(given, Iterable) or hasattr(given, "__getitem__")
    if whole or not reads:
        shown = f"a {type(given).__name__}"
        raise PlanError(
            f"{name} is {shown}, which does not give batches: pass a list of batches, or a"
            " DataLoader."
        )


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
