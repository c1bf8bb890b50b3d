"""What another library's exception says, in one line."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def cause(error: BaseException) -> str:
    """The first line of the innermost cause of `error`, and its second where the first ends in ":".

    Without a full stop, to stand within a sentence; the exception's class where it says nothing.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines()]
    said = [line for line in lines if line] or [type(error).__name__]
    return " ".join(said[: 2 if said[0].endswith(":") else 1]).rstrip(".")
