"""Ctrl-C and SIGTERM: one line and exit code 130, whatever the libraries make of it."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import Iterator

import pytest
import test_cli
from test_cli import Run

run = test_cli.run

NETS = """
import os, signal, time

def disguised():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except BaseException:
        raise ModuleNotFoundError("no such class") from None

def ended():
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # it would end the tests
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C."""
    had = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, had)


@pytest.mark.parametrize("factory", ["disguised", "ended"])
def test_a_signal_ends_the_command_with_130(run: Run, tmp_path: pathlib.Path, factory: str) -> None:
    (tmp_path / "nets_of_signals.py").write_text(NETS)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    said = run("explain", f"nets_of_signals:{factory}")
    assert (said.code, said.err) == (130, "prunec: interrupted; nothing was written\n")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
