"""Ctrl-C and a request to end (SIGTERM), as one exception that scratch files are cleared up by."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interruption:
    """`asked`: whether a signal came. Libraries turn the exception into errors of their own, in
    which it may not be found again."""

    asked = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal and raise KeyboardInterrupt where the program is."""
        self.asked = True
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let both signals raise KeyboardInterrupt within the block. What ignores one (nohup), or
    handles it in its own way, is left as it is; so are threads that are not the main one."""
    found = Interruption()
    own = threading.current_thread() is threading.main_thread()
    changed = [s for s, usual in _USUAL.items() if own and signal.getsignal(s) is usual]
    for number in changed:
        signal.signal(number, found.handle)
    try:
        yield found
    finally:
        for number in changed:
            signal.signal(number, _USUAL[number])
