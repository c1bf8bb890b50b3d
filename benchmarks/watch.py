"""What a process does beside computing, as it does it: audit events of Python, and inotify for what
opens files without Python (safetensors does).

Each event is one line on a pipe at once, so that it is known of a process that is killed later.
What would run foreign code or reach the network is refused after it was recorded.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import os
import site
import struct
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fork_server import Call

CANARY = "prunec_canary"  # a builtin that records being called: what payloads try to run

_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
_RUNS += ("subprocess.Popen", "pickle.find_class", "webbrowser.open", "ctypes.dlopen")
_RUNS += ("ctypes.dlsym", "ctypes.call_function", "cpython.run_command", "cpython.run_file")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_NETWORK += ("socket.bind", "socket.sendto", "socket.sendmsg", "urllib.Request")
_NETWORK += ("http.client.connect", "ftplib.connect", "smtplib.connect")
_WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITES += ("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "os.mkfifo", "os.mknod")
_LISTS = ("os.listdir", "os.scandir", "glob.glob")
_OPENED, _READ = 0x20, 0x1  # IN_OPEN, IN_ACCESS

# What the system and installed packages read for themselves.
_SYSTEM = ("/proc/self", "/proc/cpuinfo", "/dev/null", "/dev/urandom", "/sys/devices/system/cpu")
_SYSTEM += ("/etc/localtime",)


class Refused(RuntimeError):
    """Raised in place of what must not happen."""


class Watch:
    """Records while its block runs. Python cannot take an audit hook out again: for a process that
    ends afterwards."""

    def __init__(self, pipe: int, call: Call) -> None:
        own = Path(__file__).resolve().parent.parent
        packages = [sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")]
        code = [own / "compiler", own / "passes", own / "tests", own / "benchmarks", *packages]
        code += [sys.prefix, sys.base_prefix, *site.getsitepackages()]
        code += [p for p in sys.path if p.rstrip("/").endswith(("-packages", "/lib"))]
        self.code = _real(code)
        self.inside = [*_real([call.directory, *call.writes]), *_SYSTEM]
        self.listed = {os.path.realpath(p) for p in sys.path}
        self.writable = _real(call.writes)
        self.pipe, self.outside = pipe, call.outside
        self.known = {name.partition(".")[0] for name in sys.modules}
        self.known |= set(sys.stdlib_module_names) - {"antigravity", "this"}
        self.active = self.busy = False
        self.files = -1
        if call.outside is not None:
            self.files = _inotify(os.fspath(call.outside))

    def __enter__(self) -> None:
        setattr(builtins, CANARY, lambda *_, **__: self.tell("executed", "the payload ran"))
        builtins.input = self._asked
        sys.addaudithook(self._hook)
        self.active = True

    def __exit__(self, *_: Any) -> None:
        self.active = False
        if self.files >= 0:
            for name in _accessed(self.files):
                self.tell("opened outside", f"{self.outside}/{name}")

    def tell(self, event: str, what: str) -> None:
        line = json.dumps({"event": event, "what": what[:300]})
        os.write(self.pipe, (line + "\n").encode())

    def _asked(self, prompt: object = "") -> str:
        self.tell("executed", f"it asked: {prompt}")
        return "y"

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active or self.busy:
            return
        self.busy = True
        try:
            kind = self._kind(event, args)
            if kind is not None:
                self.tell(kind, f"{event} {_shown(args)}")
        finally:
            self.busy = False
        if kind in ("executed", "network"):
            raise Refused(f"{event} is not allowed here")

    def _kind(self, event: str, args: tuple[Any, ...]) -> str | None:
        """What the event is, None where it is no more than the work needs."""
        if event in _RUNS:
            return "executed"
        if event in _NETWORK:
            return "network"
        if event == "import":
            top = str(args[0]).partition(".")[0]
            return None if top in self.known else "executed"
        if event == "compile":
            source = args[0].decode(errors="replace") if isinstance(args[0], bytes) else args[0]
            return "executed" if isinstance(source, str) and f"{CANARY}(" in source else None
        if event == "exec":
            return self._of_code(args[0].co_filename)
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            return self._of_file(os.fsdecode(args[0]), args[1], args[2])
        if event in _WRITES:
            return None if _under(_written(args), self.writable) else "wrote"
        if event in _LISTS and args[0] is not None and not isinstance(args[0], int):
            place = os.path.realpath(os.fsdecode(args[0]))
            known = place in self.listed or _under(place, [*self.inside, *self.code])
            return None if known else "opened outside"
        return None

    def _of_code(self, name: str) -> str | None:
        if name.startswith("<"):  # torch.fx's own source, dataclasses, namedtuples
            return None
        return None if _under(name, self.code) else "executed"

    def _of_file(self, path: str, mode: Any, flags: Any) -> str | None:
        place = os.path.realpath(path)
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and place != os.devnull:
            return None if _under(place, self.writable) else "wrote"
        return None if _under(place, [*self.inside, *self.code]) else "opened outside"


def _written(args: tuple[Any, ...]) -> str:
    """What is written: a path, one relative to the directory of a descriptor, or a descriptor."""
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")
    if not isinstance(args[0], (str, bytes, os.PathLike)):
        return "/"
    place, base = os.fsdecode(args[0]), args[-1]
    if len(args) > 1 and type(base) is int and base >= 0 and not os.path.isabs(place):
        with contextlib.suppress(OSError):
            return os.path.join(os.readlink(f"/proc/self/fd/{base}"), place)
    return place


def _real(paths: Any) -> list[str]:
    return [os.path.realpath(path) for path in paths]


def _under(path: str, roots: list[str]) -> bool:
    place = os.path.realpath(path)
    return any(place == root or place.startswith(root.rstrip("/") + "/") for root in roots)


def _shown(args: tuple[Any, ...]) -> str:
    return " ".join(repr(a)[:200] for a in args[:2] if not isinstance(a, (list, dict)))


def _inotify(directory: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    files = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if files < 0 or libc.inotify_add_watch(files, directory.encode(), _OPENED | _READ) < 0:
        raise OSError(ctypes.get_errno(), "inotify", directory)
    return files


def _accessed(files: int) -> list[str]:
    """The names of the files that were opened since, in order."""
    try:
        data = os.read(files, 1 << 16)
    except BlockingIOError:
        return []
    names: list[str] = []
    while data:
        _, _, _, length = struct.unpack_from("iIII", data)
        name = data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
        names += [] if name in names else [name]
        data = data[16 + length :]
    return names
