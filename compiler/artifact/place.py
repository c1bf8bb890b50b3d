"""An output directory, held for a run: refused, locked and tried before anything is made for it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import time
from typing import Any

from ..durable import sync_tree
from ..errors import ArtifactError
from .exchange import JOURNAL, NEW, OLD, clear, finish, put_in_place, work_directory
from .lock import Held, Lock

MANIFEST = "prunec.json"
SWEEP = ("sweep.json", "sweep.png")  # of a sweep in the same directory; no part of the artifact
PROBE = 1 << 20  # bytes
_PROBE_NAME = "probe"
_WAIT = 5.0  # seconds for a run that is between two renames


class OutputPlace:
    """A context in which one run, and no other, may replace `directory`.

    On entering: what an earlier run left is finished or cleared, and a write is tried. `new` gives
    an empty directory, `commit` puts it in place. A link is followed. Raises ArtifactError for what
    no artifact can be put in place of, for a place that another run holds or nobody can write to.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.given = pathlib.Path(directory)
        try:
            self.target = self.given.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a zero byte
            raise ArtifactError(f"{directory!r} is no path of a directory ({error}).") from error
        self.work = work_directory(self.target)
        self._lock: Lock | None = None
        self._made: list[pathlib.Path] = []

    def __enter__(self) -> OutputPlace:
        try:
            refuse_foreign(self.target)
            refuse_unmovable(self.target)
            self._make_parents()
            self._lock = Lock(self.work)
            finish(self.work, self.target)
            clear(self.work)
            refuse_foreign(self.target)
            self._try_a_write()
        except Held as held:
            self._leave()
            process = held.owner.split(" ")[0]
            who = f"process {process}" if process.isdigit() else "another run"
            raise ArtifactError(
                f"{who} is writing to {self.target}: wait for its end, or choose another directory."
            ) from None
        except OSError as error:
            self._leave()
            raise ArtifactError(
                f"{self.target.parent} cannot be written to ({error.strerror or error}): choose"
                " another place for the artifact, or make room there."
            ) from error
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _make_parents(self) -> None:
        for path in reversed((self.target.parent, *self.target.parent.parents)):
            if not path.exists():
                path.mkdir(exist_ok=True)
                self._made.insert(0, path)

    def _try_a_write(self) -> None:
        probe = self.work / _PROBE_NAME
        try:
            with probe.open("wb") as file:
                file.write(os.urandom(PROBE))  # a file system may store zeros in no space
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)

    def _leave(self) -> None:
        if self._lock is not None:
            if not (self.work / JOURNAL).exists():
                clear(self.work)
            self._lock.release()
            self._lock = None
        for path in self._made:  # where nothing came of the run
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made = []

    def refuse_full(self, size: int, what: str) -> None:
        """Raise ArtifactError where less than `size` bytes are free."""
        free = shutil.disk_usage(self.work).free
        if free < size:
            raise ArtifactError(
                f"{self.target.parent} has {free / 1e6:,.0f} MB left, and {what} takes"
                f" {size / 1e6:,.0f} MB at least: choose another place, or make room there."
            )

    def new(self) -> pathlib.Path:
        """An empty directory beside the target."""
        place = self.work / NEW
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        place.chmod(0o755)
        return place

    def commit(self) -> None:
        """Put what is in `new` in place, with what others have put into the old directory.

        Raises OSError, or ArtifactError where something foreign has come there meanwhile; the
        target then is as it was, and `new` too.
        """
        new = self.work / NEW
        refuse_foreign(self.target)
        _take_along(self.target, new)
        sync_tree(new)
        put_in_place(self.work, self.target)
        for name in (NEW, OLD):
            shutil.rmtree(self.work / name, ignore_errors=True)
        (self.work / JOURNAL).unlink(missing_ok=True)

    def keep(self) -> pathlib.Path:
        """Move `new` beside the target, under a name of its own. Raises OSError."""
        kept = free_name(self.target)
        os.rename(self.work / NEW, kept)
        return kept


def free_name(target: pathlib.Path) -> pathlib.Path:
    """A name beside a directory, under which what could not be put there is kept."""
    names = (f"{target.name}-kept{n or ''}" for n in range(1_000_000))
    return next(p for p in map(target.with_name, names) if not os.path.lexists(p))


def settled(directory: str | os.PathLike[str]) -> pathlib.Path:
    """Where to read a directory: a run that was ended between two renames is finished; where that
    cannot be (a disk that is read-only), what it wrote is read where it lies."""
    given = pathlib.Path(directory)
    deadline = time.monotonic() + _WAIT
    while not os.path.lexists(target := given.resolve()):
        work = work_directory(target)
        if not (work / JOURNAL).is_file():
            break
        try:
            lock = Lock(work)
        except Held:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
            continue
        except OSError:
            return next((p for p in (work / NEW, work / OLD) if p.is_dir()), given)
        try:
            finish(work, target)
            clear(work)
        finally:
            lock.release()
    return given


def refuse_unmovable(target: pathlib.Path) -> None:
    """Raise ArtifactError where a directory cannot be replaced whole: a file in its way, the
    current directory (or one above it), the root of a disk."""
    refuse_file(target)
    inside = f"give a directory inside it, as in {target / 'small'}"
    if os.path.ismount(target):
        raise ArtifactError(f"{target} is the root of a disk and cannot be replaced: {inside}.")
    with contextlib.suppress(FileNotFoundError):  # of a current directory that is gone
        if pathlib.Path.cwd().is_relative_to(target):
            raise ArtifactError(
                f"{target} is the current directory, or above it, and cannot be replaced: {inside}."
            )


def refuse_foreign(target: pathlib.Path) -> None:
    """Raise ArtifactError when something else than an artifact, what a sweep has written or an
    empty directory is there, or a file where a directory is needed."""
    refuse_file(target)
    if not target.exists() or (target / MANIFEST).is_file():
        return
    if any(path.name not in SWEEP for path in target.iterdir()):
        raise ArtifactError(f"{target} exists and is no prunec artifact; choose another path.")


def refuse_file(target: pathlib.Path) -> None:
    """Raise ArtifactError where no directory can be made: it, or what it lies in, is a file."""
    nearest = next(path for path in (target, *target.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ArtifactError(f"{nearest} exists and is no directory; choose another path.")


def _take_along(old: pathlib.Path, new: pathlib.Path) -> None:
    """What is not prunec's in an old artifact, and has no namesake in the new one, stays."""
    if not old.is_dir():
        return
    own = _own_files(old)
    for folder, folders, names in os.walk(old):
        links = [name for name in folders if pathlib.Path(folder, name).is_symlink()]
        for name in (*names, *links):
            path = pathlib.Path(folder, name)
            inside = path.relative_to(old)
            copy = new / inside
            if inside.as_posix() in own or os.path.lexists(copy):
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy, follow_symlinks=False)
            except OSError:
                shutil.copy2(path, copy, follow_symlinks=False)


def _own_files(place: pathlib.Path) -> set[str]:
    """The files that an artifact's manifest says it was written with."""
    try:
        manifest: Any = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {MANIFEST}
    found = {MANIFEST}
    for key in ("checksums", "files"):
        names = manifest.get(key) if isinstance(manifest, dict) else None
        if isinstance(names, (dict, list)):
            found |= {name for name in names if isinstance(name, str)}
    return found
