"""Processes forked from one that has imported torch, transformers and prunec: a call each, under a
limit of memory and of time, with what it does outside its directory recorded.

    with ForkServer(subjects) as server:
        outcome = server.run(Call("load", "cnn", directory))

The server is a process of its own with one thread, which loads every subject once before it forks:
lazy imports are paid there, and every child starts from the same state.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
CPU_SECONDS = 20
WALL_SECONDS = 90
MEMORY = 1 << 30  # bytes above what the server itself takes

EXECUTED, NETWORK, OUTSIDE, WROTE = "executed", "network", "opened outside", "wrote"
HANG, MEMORY_OUT, CRASH, CHANGED = "hang", "memory", "crash", "changed the process"
OTHER, DIFFERENT, CLEAR, SAME = (
    "other exception",
    "different outputs",
    "clear error",
    "identical load",
)
# From the worst to the best; the first that holds names the outcome.
OUTCOMES = (EXECUTED, NETWORK, OUTSIDE, WROTE, HANG, MEMORY_OUT, CRASH, CHANGED, OTHER, DIFFERENT)
OUTCOMES += (CLEAR, SAME)


@dataclasses.dataclass(frozen=True)
class Call:
    """An entry point (see entry_points.py), the subject that `directory` was made from, and where
    the call may write."""

    entry: str
    subject: str
    directory: str | os.PathLike[str]
    outside: str | os.PathLike[str] | None = None  # files here must not even be opened
    writes: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    memory: int = MEMORY
    cpu_seconds: int = CPU_SECONDS
    wall_seconds: int = WALL_SECONDS


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`kind`: one of OUTCOMES; `text`: the error's message; `where`: the innermost line of prunec
    in its traceback; `events`: what was recorded, worst first."""

    kind: str
    text: str = ""
    where: str = ""
    events: tuple[str, ...] = ()


class ForkServer:
    """`subjects`: a directory of artifacts, one a subject of fuzz_subjects.py."""

    def __init__(self, subjects: str | os.PathLike[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py"), os.fspath(subjects)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, call: Call) -> Outcome:
        """Raises RuntimeError when the server itself has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = dataclasses.asdict(call)
        self._process.stdin.write(json.dumps(data, default=os.fspath) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server ended with code {self._process.wait()}")
        found = json.loads(answer)
        return Outcome(**{**found, "events": tuple(found["events"])})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(subjects: Path) -> None:
    """Answer one call a line until the input ends."""
    import entry_points

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    entry_points.warm(subjects)
    for line in sys.stdin:
        call = Call(**json.loads(line))
        answers.write(json.dumps(dataclasses.asdict(_forked(call))) + "\n")
        answers.flush()


def _forked(call: Call) -> Outcome:
    reads, writes = os.pipe()
    places = os.memfd_create("places")  # where it was when its time ran out
    child = os.fork()
    if child == 0:
        os.close(reads)
        _in_child(call, writes, places)
    os.close(writes)
    lines, timely = _collected(reads, child, time.monotonic() + call.wall_seconds)
    os.close(reads)
    _, status = os.waitpid(child, 0)
    os.lseek(places, 0, os.SEEK_SET)
    stack = os.read(places, 1 << 16).decode(errors="replace")
    os.close(places)
    return _judged(lines, status, timely, stack)


def _collected(reads: int, child: int, end: float) -> tuple[list[str], bool]:
    data, timely = b"", True
    while True:
        ready, _, _ = select.select([reads], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            timely = False
            os.kill(child, signal.SIGXCPU)  # it says where it is
            time.sleep(0.1)
            os.kill(child, signal.SIGKILL)
            end = time.monotonic() + 5
            continue
        block = os.read(reads, 1 << 16)
        if not block:
            return data.decode(errors="replace").splitlines(), timely
        data += block


def _judged(lines: list[str], status: int, timely: bool, stack: str) -> Outcome:
    rows = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    events = [row for row in rows if "event" in row]
    ends = [row for row in rows if "kind" in row]
    found = {row["event"] for row in events}
    told = tuple(f"{row['event']}: {row['what']}" for row in events)
    end = ends[-1] if ends else {"kind": CRASH, "text": f"wait status {status}", "where": ""}
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by and (not timely or stack or ended_by == signal.SIGXCPU):
        end = {"kind": HANG, "text": stack[-2000:], "where": _innermost(stack)}
    kind = next(k for k in OUTCOMES if k in found or k == end["kind"])
    return Outcome(kind, end["text"], end["where"], told)


def _innermost(stack: str) -> str:
    """The innermost line of prunec in what faulthandler wrote, newest first."""
    lines = [line.strip() for line in stack.splitlines() if line.strip().startswith("File ")]
    return next((line for line in lines if "/compiler/" in line), lines[0] if lines else "")


def _in_child(call: Call, writes: int, places: int) -> None:
    """Never returns."""
    import faulthandler

    import entry_points
    from watch import Watch

    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        faulthandler.register(signal.SIGXCPU, file=places, all_threads=False, chain=False)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + call.memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        resource.setrlimit(resource.RLIMIT_CPU, (call.cpu_seconds, call.cpu_seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = Watch(writes, call)
        with watch:
            end = entry_points.call(call)
        os.write(writes, (json.dumps(end) + "\n").encode())
        code = 0
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        end = {"kind": CRASH, "text": text[:2000], "where": "the harness"}
        os.write(writes, (json.dumps(end) + "\n").encode())
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
    serve(Path(sys.argv[1]))
