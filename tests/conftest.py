"""Every test starts from the same seed, on one thread, without the libraries' chatter."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from saved import ROWS, Saved, compress
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    op_times_by_size,
    small_cnn,
    timed_by_size,
    tiny_llama,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of all architectures run when they are asked for."""
    if "architectures" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("architectures")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Op times that tests measure are theirs."""
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path_factory.getbasetemp() / "op-times"))


@pytest.fixture
def fake_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes by the number of parameters, of models and of ops."""
    monkeypatch.setenv("PRUNEC_CACHE", "")
    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", timed_by_size)
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    monkeypatch.setattr("prunec.compiler.cost_model.stepping.Stepper.times", op_times_by_size)


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    def write(text: str) -> pathlib.Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    result = compress(small_cnn(), IMAGES)
    return Saved(result, result.save(tmp_path_factory.mktemp("cnn") / "small"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    result = compress(tiny_llama(), kwargs={"input_ids": IDS})
    return Saved(result, result.save(tmp_path_factory.mktemp("llama") / "small"))


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    result = compress(BakedSize().eval(), ROWS)
    return Saved(result, result.save(tmp_path_factory.mktemp("baked") / "small"))


@pytest.fixture
def own_copy(cnn: Saved, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the CNN's artifact to damage."""
    place = tmp_path / "copy"
    place.mkdir()
    for path in cnn.place.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place
