"""The lock of an output directory: held for a run, free as soon as its process has ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import weakref

NAME = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_TRIES = 20


class Held(Exception):
    """Another run holds the lock; `owner` says which, where that is known."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class Lock:
    """The file `lock` in a folder, which is made for it and removed with it."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises Held, and OSError where the folder cannot be made."""
        self.folder, self.path = folder, folder / NAME
        self.handle = self._take()
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        _open.add(self)

    def _take(self) -> int:
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:  # its owner has just removed the folder
                continue
            if self._owns(handle):
                return handle
            os.close(handle)
        raise Held(_owner(self.path))

    def _owns(self, handle: int) -> bool:
        """Take the lock; False where the file has been removed meanwhile, by its last owner."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(self.path)
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise Held(owner) from None
            if _lives(owner):  # a file system without locks
                os.close(handle)
                raise Held(owner) from None
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file, and the folder where nothing else is in it."""
        if self.handle < 0:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Give the lock up and leave the file; a copy in a forked process locks nothing."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1


_open: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_all() -> None:
    """A worker that outlives its parent would hold the parent's locks."""
    for lock in list(_open):
        lock.close()


os.register_at_fork(after_in_child=_close_all)


def _owner(path: pathlib.Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(300).strip()
    except OSError:
        return ""


def _lives(owner: str) -> bool:
    """Whether a process of this machine is the owner."""
    number, _, machine = owner.partition(" ")
    if not number.isdigit() or machine != socket.gethostname() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
