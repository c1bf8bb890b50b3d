"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile


def write_whole(path: pathlib.Path, text: str) -> None:
    """Put a text in the place of a file's in one step; its folder is made. Raises OSError, and
    leaves nothing then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    sync_directory(path.parent)


def sync_tree(directory: pathlib.Path) -> None:
    """Have every file and folder below, and the directory itself, written to the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = pathlib.Path(folder, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        sync_directory(pathlib.Path(folder))


def sync_directory(directory: pathlib.Path) -> None:
    """Have the names in a directory written; file systems that cannot do so are left alone."""
    with contextlib.suppress(OSError):
        _sync(directory)


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
