"""Ctrl-C and SIGTERM: one line and exit code 130, whatever the libraries make of it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

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


@pytest.mark.parametrize("factory", ["disguised", "ended"])
def test_a_signal_ends_the_command_with_130(run: Run, tmp_path: pathlib.Path, factory: str) -> None:
    (tmp_path / "nets_of_signals.py").write_text(NETS)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    said = run("explain", f"nets_of_signals:{factory}")
    assert (said.code, said.err) == (130, "prunec: interrupted; nothing was written\n")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_while_torch_is_imported_is_no_traceback(tmp_path: pathlib.Path) -> None:
    """A torch of ours says when it is imported, and does not finish."""
    (tmp_path / "torch.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\nfrom prunec.command import main\nmain()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (130, "prunec: interrupted; nothing was written\n")
