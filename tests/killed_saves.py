"""Saves that are killed (SIGKILL) at a chosen one of their calls to the system; run as a program.

`killed_saves.py FOLDER MOMENTS HOW WHAT`: two results are made once; each save runs in a forked
process that counts its audit events of files and kills itself at one of them. HOW is "renameat2" or
"journal" (no exchange), WHAT "replace" (over an old artifact) or "first" (where there is none).
Prints one line of JSON: what was found after each kill.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
from typing import Any

import torch
from saved import compress
from tiny_models import IMAGES, small_cnn

from prunec import compiler
from prunec.compiler import Result, Target
from prunec.compiler.artifact import exchange, place
from prunec.compiler.artifact.exchange import work_directory
from prunec.compiler.errors import ArtifactError

EVENTS = ("open", *(f"os.{x}" for x in ("rename", "mkdir", "rmdir", "remove", "link", "chmod")))


class Counter:
    """Counts events of files below a folder, and kills the process at number `at`."""

    def __init__(self, folder: pathlib.Path, at: int | None) -> None:
        self.folder, self.at, self.count, self.exchanged = str(folder), at, 0, 0
        self.renames: list[int] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(EVENTS):
            return
        if any(self.folder in os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))) or (
            any(self.folder in str(a) for a in arguments if isinstance(a, os.PathLike))
        ):
            if event == "os.rename":
                self.renames.append(self.count)
            self.step()

    def step(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def forked(work: Any) -> int:
    """The status of a forked process that does `work`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def counted_save(result: Result, target: pathlib.Path, at: int | None, note: pathlib.Path) -> int:
    counter = Counter(target.parent, at)
    real, put = exchange.exchange, place.put_in_place

    def exchanged(one: pathlib.Path, other: pathlib.Path) -> bool:
        counter.renames += [counter.count, counter.count + 1]
        counter.step()  # just before
        found = real(one, other)
        counter.step()  # just after
        return found

    def put_in_place(*arguments: Any) -> None:
        counter.exchanged = counter.count
        put(*arguments)
        counter.step()

    flush = os.fsync

    def fsync(handle: int) -> None:
        counter.step()
        flush(handle)

    os.fsync = fsync
    exchange.exchange, place.put_in_place = exchanged, put_in_place
    sys.addaudithook(counter)
    result.save(target)
    last = [n for n in counter.renames if n >= counter.exchanged]
    text = json.dumps([counter.count, counter.exchanged, last])
    note.write_text(text)
    return 0


def found_at(target: pathlib.Path, outputs: dict[str, torch.Tensor]) -> str:
    """Which artifact a reader finds, by its outputs."""
    try:
        given = compiler.load(target)(IMAGES)
    except ArtifactError as error:
        return "nothing" if not target.exists() else f"damaged: {error}"
    same = [name for name, expected in outputs.items() if torch.equal(given, expected)]
    return same[0] if same else "other outputs"


def moments_of(total: int, near: int, renames: list[int], moments: int) -> list[int]:
    """Events to kill at: every rename of the exchange, the last event, and others evenly, half of
    them behind `near`, where the exchange begins; all where there are no more than `moments`."""
    if moments >= total:
        return list(range(total))
    chosen = {*renames, total - 1}
    rest = moments - len(chosen)
    chosen |= {i * near // (rest - rest // 2) for i in range(rest - rest // 2)}
    evenly = [n for n in range(near, total) if n not in chosen]
    return sorted(chosen | set(evenly[:: max(1, len(evenly) // max(1, rest // 2))]))


def timed_kill(work: Any, seconds: float) -> int:
    """The status of a forked process that is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(folder: pathlib.Path, moments: int, how: str, what: str) -> None:
    torch.set_num_threads(1)
    if how == "journal":
        exchange._system_call = lambda: None
    old = compress(small_cnn(), IMAGES, target=Target(width=0.75))
    new = compress(small_cnn(), IMAGES)
    kept = folder / "kept"
    old.save(kept)
    outputs = {"old": old.model(IMAGES), "new": new.model(IMAGES)}
    target, note = folder / "runs" / "small", folder / "note"
    after: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []

    def begin() -> None:
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        if what == "replace":
            shutil.copytree(kept, target)

    def look(name: str, again: bool) -> None:
        """What a reader finds after a kill, and whether the next run clears what it left."""
        missing, left = not target.exists(), work_directory(target).exists()
        found = found_at(target, outputs)
        after.update([found])
        after["absent until read"] += missing and found != "nothing"
        after["with leftovers"] += left
        if found not in ("new", "old" if what == "replace" else "nothing"):
            wrong.append(f"{name}: {found}")
        if again:
            assert forked(lambda: new.save(target) is None) == 0
            if found_at(target, outputs) != "new":
                wrong.append(f"{name}: the next run made nothing of it")
        else:
            with place.OutputPlace(target):
                pass
        if [*target.parent.iterdir()] != [target] * target.exists():
            wrong.append(f"{name}: the next run left {[*target.parent.iterdir()]}")

    begin()
    assert forked(lambda: counted_save(new, target, None, note)) == 0
    total, near, renames = json.loads(note.read_text())
    chosen = moments_of(total, near, renames, moments)
    for n, at in enumerate(chosen):
        begin()
        status = forked(lambda at=at: counted_save(new, target, at, note))
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            wrong.append(f"event {at} of {total}: not killed")
            continue
        look(f"event {at} of {total}", again=n % 4 == 0)
    begin()
    started = time.monotonic()
    assert forked(lambda: new.save(target) is None) == 0
    seconds = time.monotonic() - started
    beyond = max(0, moments - len(chosen))  # a save has fewer calls than moments are asked for
    for n in range(beyond):
        begin()
        timed_kill(lambda: new.save(target), seconds * (n + 1) / (beyond + 1))
        look(f"after {n + 1} of {beyond + 1} parts of its time", again=n % 4 == 0)
    kills = len(chosen) + beyond
    print(json.dumps({"events": total, "kills": kills, "after": after, "wrong": wrong}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
