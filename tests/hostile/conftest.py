"""One fork server and four sound artifacts for all attacks."""

from __future__ import annotations

import fcntl
import os
import pathlib
from collections.abc import Iterator

import pytest
from fork_server import ForkServer
from fuzz_subjects import build
from hostile.attack import Range

SOME = 3  # attacks of a list


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The artifacts, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    place = base / "hostile-subjects"
    place.mkdir(exist_ok=True)
    with (base / "hostile-subjects.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(place)
    return place


@pytest.fixture(scope="session")
def fork_server(subjects: pathlib.Path) -> Iterator[ForkServer]:
    with ForkServer(subjects) as server:
        yield server


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def attacks(
    request: pytest.FixtureRequest,
    fork_server: ForkServer,
    subjects: pathlib.Path,
    tmp_path: pathlib.Path,
) -> Range:
    """The default suite tries some of each list, the slow tests all."""
    return Range(fork_server, subjects, tmp_path, SOME if request.param == "some" else None)
