"""Whether a file can be written, asked before anything is made for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..cause import cause
from ..errors import ExportError


def require_writable(path: Path) -> None:
    """Raise ExportError where `path` is a directory, lies in none, or in one that takes no file."""
    if path.is_dir():
        raise ExportError(f"{path} is a directory: name a file in it, as in {path / 'model.onnx'}.")
    if not path.parent.is_dir():
        raise ExportError(f"There is no directory for {path.name}: create {path.parent} first.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(
            f"{path.parent} takes no file ({cause(error)}): choose another directory."
        ) from error
