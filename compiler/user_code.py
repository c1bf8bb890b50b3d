"""Code of the user's that is called here: factories, loaders, metrics, callbacks."""

from __future__ import annotations

import contextlib
import pathlib
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .cause import cause
from .errors import PrunecError

T = TypeVar("T")
_HERE = pathlib.Path(__file__).resolve().parent
_OURS = {_HERE, _HERE.parent / "passes"}
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class UserCodeError(PrunecError):
    """Code of the user's raised, or ended the process."""


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Within the block, what is raised becomes a UserCodeError that names `what` and the user's
    line; errors of prunec's own and interruptions pass."""
    try:
        yield
    except (PrunecError, KeyboardInterrupt, GeneratorExit):
        raise
    except SystemExit as error:
        raise UserCodeError(
            f"{what} ended the process{_line(error)} (exit code {error.code}): let it return."
        ) from error
    except BaseException as error:  # whatever it raises
        raise UserCodeError(
            f"{what} raised {type(error).__name__}{_line(error)} ({cause(error)}): correct it "
            "there."
        ) from error


def call_user(what: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What the function gives. Raises UserCodeError."""
    with user_code(what):
        return function(*args, **kwargs)


def as_number(given: Any) -> float | None:
    """What a metric gave, where it is one number (of a tensor or array of one entry, too)."""
    if isinstance(given, (str, bytes)):
        return None
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # tensors of several raise these
        return None


def user_batches(what: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, read one by one. Raises UserCodeError, which names the number of the batch."""
    with user_code(f"{what}, when it was begun,"):
        source = iter(batches)
    number = 1
    while True:
        with user_code(f"batch {number} of {what}"):
            try:
                batch = next(source)
            except StopIteration:
                return
        yield batch
        number += 1


def _line(error: BaseException) -> str:
    """' at FILE:LINE', the innermost line that is neither prunec's nor a library's; the innermost
    of a library where there is none."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if _OURS.isdisjoint(pathlib.Path(frame.filename).parents)
        and not frame.filename.startswith("<frozen")
    ]
    if not frames:
        return ""
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (own or frames)[-1]
    return f" at {pathlib.Path(frame.filename).name}:{frame.lineno}"
