"""A block in which nothing is opened but Python's own files: no network, no data, no process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

from ..errors import ArtifactError

_WEIGHTS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".safetensors", ".npz", ".npy")
_FILES = ("os.remove", "os.rename", "os.rmdir")
_REFUSED = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    *_FILES,
    "shutil.rmtree",
    "urllib.Request",
    "webbrowser.open",
)
_closed = threading.local()


@contextlib.contextmanager
def nothing_opened() -> Iterator[None]:
    """Raise ArtifactError where code inside the block, on this thread, opens a file that is not of
    the installation, or reaches for the network or another process."""
    _install()
    before = getattr(_closed, "door", False)
    _closed.door = True
    try:
        yield
    finally:
        _closed.door = before


@cache
def _install() -> None:
    """Audit hooks cannot be removed: one, which looks at a flag."""
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not getattr(_closed, "door", False):
        return
    if event == "open" and _of_installation(*args):
        return
    caches = event in _FILES and all(_is_cache(x) for x in args[:1])
    if event == "open" or (event in _REFUSED and not caches):
        what = str(args[0])[:200] if args else event
        raise ArtifactError(
            f"the stored configuration would have {event} reach {what}: the artifact is forged, or "
            "of a class that needs more than its configuration; load it with graph=True."
        )


def _of_installation(path: Any, mode: Any = None, flags: Any = 0, *_: Any) -> bool:
    """Whether an opened file is of an installed package or of the system, and only read; Python's
    own caches of compiled code may be written."""
    if isinstance(path, int):
        return True
    try:
        name = os.fsdecode(os.fspath(path))
    except TypeError:
        return False
    writes = isinstance(mode, str) and any(x in mode for x in "wax+")
    writes |= isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes:
        return _is_cache(name)
    return os.path.realpath(name).startswith(_roots()) and not name.endswith(_WEIGHTS)


def _is_cache(path: Any) -> bool:
    return f"{os.sep}__pycache__{os.sep}" in str(path)


@cache
def _roots() -> tuple[str, ...]:
    known = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(pathlib.Path(os.__file__).parent)}
    known |= {p for p in sys.path if "site-packages" in p or p.endswith("lib-dynload")}
    known |= {"/proc", "/sys", "/usr/lib", "/usr/share", "/lib"}
    return tuple(os.path.join(os.path.realpath(path), "") for path in known if path)
