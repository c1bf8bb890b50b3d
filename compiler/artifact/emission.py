"""What comes after the torch artifact (tokenizer, ONNX, int8, timings), and what is left of it
where it fails."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

Step = tuple[str, Callable[[pathlib.Path], Any]]
"""What it makes, in words, and how, in a directory."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """The step that failed or was interrupted; those behind it were not tried."""

    what: str
    error: BaseException


def run_steps(steps: Sequence[Step], place: pathlib.Path) -> Failure | None:
    """Run the steps in their order up to one that fails, whose files are removed: half an .onnx is
    of no use."""
    for what, step in steps:
        before = set(place.rglob("*"))
        try:
            step(place)
        except BaseException as error:
            for path in sorted(set(place.rglob("*")) - before, reverse=True):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            return Failure(what, error)
    return None
