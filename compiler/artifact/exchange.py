"""A directory put in the place of another: in one step where the system can, else by a journal.

Beside DIR lies, for the time of a run, the folder `.DIR-prunec`: `new` is what is written, `old`
what it replaces, `journal.json` says that the two renames of a system without exchange have begun.
Between these there is no DIR: whoever comes next, a run or a reader, finishes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import platform
import shutil
import sys

from ..durable import sync_directory, write_whole

NEW, OLD, JOURNAL = "new", "old", "journal.json"
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD
_NUMBERS = {  # of the system call renameat2, where the C library has no function of that name
    **dict.fromkeys(("x86_64", "AMD64"), 316),
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 276),
    **{"i686": 353, "armv7l": 382, "ppc64le": 357, "s390x": 347},
}
# What says that a kernel, sandbox or file system has no such call.
_NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EXDEV}


def work_directory(target: pathlib.Path) -> pathlib.Path:
    """The folder beside a directory in which prunec works on it."""
    return target.parent / f".{target.name}-prunec"  # also of the root


def put_in_place(work: pathlib.Path, target: pathlib.Path) -> None:
    """`work / new`, which is written to the disk, becomes `target`; what was there becomes `old` or
    `new`. At every moment `target` is one of the two, or the journal says what is left to do.
    Raises OSError, with `target` as it was."""
    new = work / NEW
    if not target.exists() or not any(target.iterdir()):
        os.rename(new, target)  # also over an empty directory
    elif not exchange(new, target):
        write_whole(work / JOURNAL, json.dumps({"target": target.name}))
        os.rename(target, work / OLD)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(work / OLD, target)
            (work / JOURNAL).unlink()
            raise
    sync_directory(target.parent)
    sync_directory(work)


def finish(work: pathlib.Path, target: pathlib.Path) -> None:
    """What the journal says is left to do. Only for whoever holds the place. Raises OSError."""
    journal = work / JOURNAL
    if not journal.is_file():
        return
    if not os.path.lexists(target):
        whole = work / NEW if (work / NEW).is_dir() else work / OLD
        if whole.is_dir():
            os.rename(whole, target)
            sync_directory(target.parent)
    journal.unlink()


def clear(work: pathlib.Path) -> None:
    """Remove what was left in a folder of prunec's, and nothing else."""
    for name in (NEW, OLD):
        shutil.rmtree(work / name, ignore_errors=True)
    for path in (work / JOURNAL, *work.glob(f".{JOURNAL}-*.part")):
        with contextlib.suppress(OSError):
            path.unlink()


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchange two directories in one step; False where that is not to be had. Raises OSError."""
    call = _system_call()
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_HERE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _system_call():
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    types = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    try:
        found = library.renameat2
    except AttributeError:  # an older C library
        number = _NUMBERS.get(platform.machine())
        if number is None:
            return None
        found = library.syscall
        found.argtypes = [ctypes.c_long, *types]
        found.restype = ctypes.c_long
        return lambda *arguments: found(number, *arguments)
    found.argtypes, found.restype = types, ctypes.c_int
    return found
