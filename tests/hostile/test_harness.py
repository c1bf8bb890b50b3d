"""The harness sees what it is there to see: were it blind, every attack would seem to fail."""

from __future__ import annotations

import pathlib

import pytest
from fork_server import (
    CHANGED,
    CRASH,
    EXECUTED,
    HANG,
    MEMORY_OUT,
    NETWORK,
    OTHER,
    OUTSIDE,
    SAME,
    WROTE,
    Call,
    ForkServer,
)
from fuzz_subjects import SUBJECTS

SEEN = {
    "prunec_canary()": EXECUTED,
    "exec('prunec' + '_canary' + '()')": EXECUTED,
    "import os; os.system('true')": EXECUTED,
    "import subprocess; subprocess.run(['true'])": EXECUTED,
    "import pickle, collections; pickle.loads(pickle.dumps(collections.Counter))": EXECUTED,
    "import antigravity": EXECUTED,
    "try:\n  import os; os.system('true')\nexcept Exception: pass": EXECUTED,
    "import socket; socket.create_connection(('127.0.0.1', 9))": NETWORK,
    "import urllib.request; urllib.request.urlopen('http://localhost:9')": NETWORK,
    "open('/etc/passwd')": OUTSIDE,
    "open(directory + '/../cnn/../../../etc/passwd')": OUTSIDE,
    "import os; os.listdir('/')": OUTSIDE,
    "import safetensors; safetensors.safe_open(outside, 'pt')": OUTSIDE,
    "open(directory + '/new', 'w')": WROTE,
    "import os; os.mkdir('/tmp/prunec-hostile')": WROTE,
    "while True: pass": HANG,
    "import time; time.sleep(60)": HANG,
    "x = bytearray(1 << 34)": MEMORY_OUT,
    "import torch; torch.zeros(1 << 34)": MEMORY_OUT,
    "try: x = bytearray(1 << 34)\nexcept MemoryError: raise ValueError": MEMORY_OUT,
    "import os; os.kill(os.getpid(), 11)": CRASH,
    "import torch; torch.nn.Linear.forward = None": CHANGED,
    "import torch; torch.set_default_dtype(torch.float64)": CHANGED,
    "1 / 0": OTHER,
    "pass": SAME,
}


@pytest.mark.parametrize("source", SEEN)
def test_what_a_process_does_is_seen(
    fork_server: ForkServer, subjects: pathlib.Path, tmp_path: pathlib.Path, source: str
) -> None:
    outside = tmp_path / "weights.safetensors"
    outside.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    text = source.replace("outside", repr(str(outside)))
    seconds = 4 if SEEN[source] == HANG else 90
    call = Call("python", "cnn", subjects / "cnn", tmp_path, (), (text,), 1 << 30, 1, seconds)
    assert fork_server.run(call).kind == SEEN[source]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("entry", ["load", "load graph", "load into", "verify"])
def test_sound_artifacts_open_alike_and_touch_nothing_else(
    fork_server: ForkServer, subjects: pathlib.Path, subject: str, entry: str
) -> None:
    found = fork_server.run(Call(entry, subject, subjects / subject))
    assert (found.kind, found.events) == (SAME, ()), found


def test_a_killed_child_says_where_it_was(
    fork_server: ForkServer, subjects: pathlib.Path
) -> None:
    source = "import torch.fx\nwhile True: torch.fx.Graph()"
    call = Call("python", "cnn", subjects / "cnn", arguments=(source,), cpu_seconds=1)
    found = fork_server.run(call)
    assert found.kind == HANG
    assert "torch/fx/graph.py" in found.text
