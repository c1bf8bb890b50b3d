"""The entry point: here before torch is, so that Ctrl-C while it loads ends without a traceback."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130  # the exit code of a process ended by Ctrl-C


def main() -> None:
    """Run the command. While its parts are imported, which takes seconds and writes nothing, Ctrl-C
    ends the process at once: libraries turn an interrupted import into errors of their own."""
    asked = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    if asked:
        signal.signal(signal.SIGINT, _leave)
    from ..compiler.__main__ import main as command

    if asked:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


def _leave(*_: object) -> None:
    os.write(2, b"prunec: interrupted; nothing was written\n")
    os._exit(INTERRUPTED)
