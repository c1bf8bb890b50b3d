"""kill -9 at any moment of a save: the old artifact, the new one or, where none was, nothing."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

HERE = pathlib.Path(__file__).parent


def killed(tmp_path: pathlib.Path, moments: int, how: str, what: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(HERE / "killed_saves.py"), str(tmp_path), str(moments), how, what],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def check(said: dict[str, Any], moments: int, what: str) -> None:
    assert said["wrong"] == []
    assert said["kills"] >= moments
    assert said["after"]["with leftovers"] > 0  # there was something to clear
    before = "old" if what == "replace" else "nothing"
    assert said["after"][before] > 0
    assert said["after"]["new"] > 0


@pytest.mark.parametrize("how", ["renameat2", "journal"])
def test_ten_kills_leave_the_old_artifact_or_the_new_one(tmp_path: pathlib.Path, how: str) -> None:
    said = killed(tmp_path, 10, how, "replace")
    check(said, 10, "replace")
    assert (said["after"]["absent until read"] > 0) == (how == "journal")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["replace", "first"])
@pytest.mark.parametrize("how", ["renameat2", "journal"])
def test_a_hundred_kills_leave_an_artifact_whole(
    tmp_path: pathlib.Path, how: str, what: str
) -> None:
    said = killed(tmp_path, 100, how, what)
    check(said, 100, what)
    journalled = how == "journal" and what == "replace"
    assert (said["after"]["absent until read"] > 0) == journalled
