"""Where an artifact is written: refused at once, one run at a time, what was made is never lost."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from saved import ROWS, Saved, kept_in
from tiny_models import IMAGES

from prunec import compiler
from prunec.compiler.artifact import exchange, place
from prunec.compiler.artifact.check import check_artifact
from prunec.compiler.artifact.exchange import work_directory
from prunec.compiler.artifact.place import OutputPlace
from prunec.compiler.errors import ArtifactError, ExportError


@pytest.fixture(params=["renameat2", "journal"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the exchange of the file system, and as where there is none."""
    if request.param == "journal":
        monkeypatch.setattr(exchange, "exchange", lambda *_: False)
    return request.param


@pytest.fixture
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory for temporary files, of the test's own."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    return own


def beside(path: pathlib.Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()}


# Replacing.


def test_a_directory_is_never_missing_where_the_system_exchanges(
    cnn: Saved, own_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rename takes the old artifact away."""

    def rename(*_: Any) -> None:
        raise AssertionError("renamed")

    monkeypatch.setattr(os, "rename", rename)
    (own_copy / "report.json").write_text("{}")
    cnn.result.save(own_copy)
    assert "dimensions" in json.loads((own_copy / "report.json").read_text())


def test_an_artifact_is_replaced_and_nothing_lies_beside_it(
    either_way: str, baked: Saved, own_copy: pathlib.Path
) -> None:
    baked.result.save(own_copy)
    assert torch.equal(compiler.load(own_copy)(ROWS), baked.result.model(ROWS))
    assert beside(own_copy) == {"copy"}


def test_files_that_are_not_prunecs_stay_in_a_replaced_artifact(
    either_way: str, baked: Saved, own_copy: pathlib.Path
) -> None:
    (own_copy / ".git").mkdir()
    (own_copy / ".git" / "config").write_text("mine")
    (own_copy / "data").symlink_to("/")
    baked.result.save(own_copy)
    assert (own_copy / ".git" / "config").read_text() == "mine"
    assert (own_copy / "data").is_symlink()
    assert torch.equal(compiler.load(own_copy)(ROWS), baked.result.model(ROWS))


@pytest.mark.parametrize("spelled", ["a/b/small", "a/b/small/", "./a/../a/b/small"])
def test_relative_paths_mean_the_same_directory(
    cnn: Saved, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if ".." in spelled:
        (tmp_path / "a").mkdir()
    cnn.result.save(spelled)
    assert torch.equal(compiler.load("a/b/small")(IMAGES), cnn.result.model(IMAGES))
    assert beside(tmp_path / "a" / "b" / "small") == {"small"}


def test_a_link_to_nowhere_gets_its_directory(cnn: Saved, tmp_path: pathlib.Path) -> None:
    (tmp_path / "latest").symlink_to("run-7")
    cnn.result.save(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert torch.equal(compiler.load(tmp_path / "run-7")(IMAGES), cnn.result.model(IMAGES))


def test_temporary_files_on_another_disk_change_nothing(
    cnn: Saved, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no second disk")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    cnn.result.save(tmp_path / "small")
    assert torch.equal(compiler.load(tmp_path / "small")(IMAGES), cnn.result.model(IMAGES))


# Refused.


def circle(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    return tmp_path / "one"


def a_file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


REFUSED = {
    "a circle of links": (circle, "is no path of a directory|exists and is no directory"),
    "a file": (a_file, "exists and is no directory"),
    "below a file": (lambda p: a_file(p) / "x", "exists and is no directory"),
    "the current directory": (lambda p: p, "is the current directory"),
    "above it": (lambda p: p.parent, "is the current directory, or above it|is no prunec artifact"),
    "a disk": (lambda _: pathlib.Path("/"), "is the root of a disk|is no prunec artifact"),
    "a name too long": (lambda p: p / ("x" * 300), "cannot be written to|File name too long"),
    "a device's folder": (lambda _: pathlib.Path("/proc/here"), "cannot be written to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_replaced_is_refused_and_left(
    case: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = REFUSED[case]
    target = make(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match=said), OutputPlace(target):
        pass
    assert set(tmp_path.rglob("*")) == before


def test_a_disk_that_takes_no_more_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.os, "fsync", full)
        with pytest.raises(ArtifactError, match="No space left on device"), OutputPlace(
            tmp_path / "new" / "small"
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match=r"has .* MB left"), OutputPlace(tmp_path / "x") as held:
        held.refuse_full(1 << 60, "the artifact")


def test_a_place_that_nothing_came_of_is_left_as_it_was(tmp_path: pathlib.Path) -> None:
    with OutputPlace(tmp_path / "a" / "b" / "small") as held:
        (held.new() / "half").write_text("")
    assert list(tmp_path.iterdir()) == []


# Two runs, and killed ones.

HOLDER = """
import os, sys, time
from prunec.compiler.artifact.place import OutputPlace
with OutputPlace(sys.argv[1]) as held:
    (held.new() / "half").write_text("")
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_second_run_to_a_place_is_refused_until_the_first_is_dead(
    tmp_path: pathlib.Path, how: str
) -> None:
    target = tmp_path / "small"
    command = [sys.executable, "-c", HOLDER, str(target), how]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        said = rf"process {run.pid} is writing to .*small: wait"
        with pytest.raises(ArtifactError, match=said), OutputPlace(target):
            pass
        assert (work_directory(target) / "new" / "half").exists()
        run.kill()
        run.wait()
        assert work_directory(target).exists()
        with OutputPlace(target):  # though a worker of the dead run lives on
            assert not (work_directory(target) / "new").exists()
        assert list(tmp_path.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, 9)
        run.wait()


def test_two_in_one_process_are_two_runs(tmp_path: pathlib.Path) -> None:
    first, second = OutputPlace(tmp_path / "small"), OutputPlace(tmp_path / "small")
    with first, pytest.raises(ArtifactError, match="is writing to"), second:
        pass


def test_a_folder_of_that_name_that_is_not_prunecs_is_not_emptied(tmp_path: pathlib.Path) -> None:
    work = work_directory(tmp_path / "small")
    work.mkdir()
    (work / "thesis.txt").write_text("dear")
    with OutputPlace(tmp_path / "small") as held:
        held.new()
    assert kept_in(work) == {"thesis.txt": b"dear"}


def between_renames(own_copy: pathlib.Path) -> pathlib.Path:
    """As a run that is killed leaves it where nothing exchanges: what was new lies beside."""
    work = work_directory(own_copy)
    work.mkdir()
    (work / "journal.json").write_text(json.dumps({"target": own_copy.name}))
    shutil.copytree(own_copy, work / "old")
    own_copy.rename(work / "new")
    return work


def test_a_reader_finishes_what_a_killed_run_began(own_copy: pathlib.Path, cnn: Saved) -> None:
    between_renames(own_copy)
    assert torch.equal(compiler.load(own_copy)(IMAGES), cnn.result.model(IMAGES))
    assert beside(own_copy) == {"copy"}
    between_renames(own_copy)
    assert all(check.passed for check in check_artifact(own_copy))


def test_a_reader_reads_beside_where_nothing_can_be_renamed(
    own_copy: pathlib.Path, cnn: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    between_renames(own_copy)

    def read_only(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(place, "Lock", read_only)
    assert torch.equal(compiler.load(own_copy)(IMAGES), cnn.result.model(IMAGES))


# What is kept.


def failing(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_an_artifact_that_finds_no_room_is_kept_elsewhere(
    cnn: Saved, tmp_path: pathlib.Path, scratch: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunec.compiler.artifact import save

    real = save._write

    def write(state: Any, report: Any, place: pathlib.Path, try_load: bool) -> Any:
        if scratch not in place.parents:
            failing()
        return real(state, report, place, try_load)

    monkeypatch.setattr(save, "_write", write)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        cnn.result.save(tmp_path / "out" / "small")
    kept = caught.value.kept
    assert kept == scratch / "small-kept"
    assert str(kept) in str(caught.value)
    assert torch.equal(compiler.load(kept)(IMAGES), cnn.result.model(IMAGES))
    assert beside(scratch) == {"temporary"}


def test_the_weights_are_kept_of_what_cannot_be_written_as_an_artifact(
    cnn: Saved, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("prunec.compiler.artifact.save._write", failing)
    with pytest.raises(ArtifactError) as caught:
        cnn.result.save(tmp_path / "small")
    assert caught.value.kept == tmp_path / "small-kept"
    stored = load_file(tmp_path / "small-kept" / "model.safetensors")
    assert stored.keys() == cnn.result.model.state_dict().keys()


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_an_artifact_that_cannot_be_put_in_place_is_kept_beside_it(
    cnn: Saved, own_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    before = kept_in(own_copy)

    def stopped(*_: Any) -> None:
        raise stop("not now")

    monkeypatch.setattr(place, "put_in_place", stopped)
    expected = ArtifactError if stop is OSError else KeyboardInterrupt
    with pytest.raises(expected, match=r"what was made is kept in .*copy-kept") as caught:
        cnn.result.save(own_copy)
    assert kept_in(own_copy) == before
    assert caught.value.kept == own_copy.with_name("copy-kept")  # type: ignore[attr-defined]
    assert torch.equal(compiler.load(caught.value.kept)(IMAGES), cnn.result.model(IMAGES))  # type: ignore[attr-defined]
    assert beside(own_copy) == {"copy", "copy-kept"}


@pytest.mark.parametrize("stop", [ExportError, RuntimeError, KeyboardInterrupt])
def test_the_torch_artifact_outlives_a_failed_onnx_file(
    cnn: Saved, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def export(self: Any, path: pathlib.Path, **_: Any) -> Any:
        path.write_text("half")
        raise stop("no such op")

    monkeypatch.setattr(compiler.Result, "export_onnx", export)
    target = tmp_path / "small"
    expected = ArtifactError if stop is RuntimeError else stop
    with pytest.raises(expected, match=r"model\.onnx failed \(no such op\)") as caught:
        cnn.result.save(target, onnx=True)
    assert caught.value.kept == target  # type: ignore[attr-defined]
    assert torch.equal(compiler.load(target)(IMAGES), cnn.result.model(IMAGES))
    assert not (target / "model.onnx").exists()
    assert all(check.passed for check in check_artifact(target))
    assert "model.onnx failed" in (target / "report.json").read_text()
    cnn.result.report.notes.pop()
