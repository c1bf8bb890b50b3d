"""Training checkpoints are data: JSON and safetensors, of which damage is told in one sentence."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
from typing import Any

import pytest
import torch
from test_distill import distil, mlp, same, weights

from prunec.compiler.errors import PlanError
from prunec.compiler.resume import known_plan
from prunec.passes.distillation.losses import DistillError
from prunec.passes.distillation.plain_state import read_state, write_state


def test_nothing_of_a_checkpoint_is_pickled_or_unpickled(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(owner, name, refuse)
    options: dict[str, Any] = {"ema": 0.9, "metric": lambda _: 1.0, "checkpoint": tmp_path}
    first, again = mlp(8), mlp(8)
    distil(first, mlp(16), steps=2, **options)
    (step,) = tmp_path.glob("step-*")
    assert {p.suffix for p in step.iterdir()} == {".json", ".safetensors"}
    assert distil(again, mlp(16), steps=2, **options).details["resumed at"] == 2
    assert same(weights(first), weights(again))


class Trap:
    def __reduce__(self) -> Any:
        return open, ("executed", "w")


def test_a_pickle_that_was_put_into_a_checkpoint_is_not_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    distil(mlp(8), mlp(16), steps=2, checkpoint=kept)
    trap = pickle.dumps(Trap())
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"):
        (kept / "step-2" / name).write_bytes(trap)
    distil(mlp(8), mlp(16), steps=2, checkpoint=kept)
    for path in (kept / "step-2").iterdir():
        path.write_bytes(trap)
    with pytest.raises(DistillError, match="cannot be read"):
        distil(mlp(8), mlp(16), steps=2, checkpoint=kept)
    assert not (tmp_path / "executed").exists()


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another(path: pathlib.Path) -> None:
    path.write_text('{"format": "pt"}')


def a_list(path: pathlib.Path) -> None:
    path.write_text("[1, 2]")


def deep(path: pathlib.Path) -> None:
    path.write_text("[" * 100_000)


def binary(path: pathlib.Path) -> None:
    path.write_bytes(bytes(range(256)))


@pytest.mark.parametrize(
    "file", ["run.json", "step-2/process-0.json", "step-2/process-0.safetensors"]
)
@pytest.mark.parametrize("damage", [cut, of_another, a_list, deep, binary, pathlib.Path.unlink])
def test_a_damaged_checkpoint_is_told_and_changes_nothing(
    tmp_path: pathlib.Path, file: str, damage: Any
) -> None:
    distil(mlp(8), mlp(16), steps=2, checkpoint=tmp_path)
    damage(tmp_path / file)
    student = mlp(8)
    before = weights(student)
    if (file, damage) == ("run.json", pathlib.Path.unlink):  # none, then
        distil(student, mlp(16), steps=2, checkpoint=tmp_path)
        return
    with pytest.raises(DistillError, match=r"cannot be read .*: remove|of another run"):
        distil(student, mlp(16), steps=2, checkpoint=tmp_path)
    assert same(weights(student), before)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("schedule", {"dict": []}),
        ("progress", {"dict": [["losses", 3], ["stopped", False]]}),
        ("objective", {"dict": [["__class__", "x"]]}),
        ("groups", {"list": []}),
        ("tensors", {"list": []}),
        ("random", {"dict": []}),
        ("step", "x"),
    ],
)
def test_a_changed_part_of_a_checkpoint_is_told(
    tmp_path: pathlib.Path, part: str, value: Any
) -> None:
    distil(mlp(8), mlp(16), steps=2, checkpoint=tmp_path)
    path = tmp_path / "step-2" / "process-0.json"
    tree = json.loads(path.read_text())
    tree["dict"] = [[k, value if k == part else v] for k, v in tree["dict"]]
    path.write_text(json.dumps(tree))
    with pytest.raises(DistillError, match="cannot be read"):
        distil(mlp(8), mlp(16), steps=2, checkpoint=tmp_path)


def test_what_is_no_regular_file_of_a_checkpoint_is_not_opened(tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "kept"
    distil(mlp(8), mlp(16), steps=2, checkpoint=kept)
    for file in ("run.json", "step-2/process-0.json", "step-2/process-0.safetensors"):
        path, away = kept / file, tmp_path / "away"
        path.rename(away)
        for target in (None, away, "/dev/zero"):
            if target is None:
                os.mkfifo(path)
            else:
                path.symlink_to(target)
            with pytest.raises(DistillError, match="no regular file"):
                distil(mlp(8), mlp(16), steps=2, checkpoint=kept)
            path.unlink()
        away.rename(path)
    (kept / "step-²").mkdir()
    (kept / "step-9").symlink_to(kept / "step-2")
    (kept / f"step-{'9' * 200}").mkdir()
    assert distil(mlp(8), mlp(16), steps=2, checkpoint=kept).details["resumed at"] == 2


def test_plain_values_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    inf = float("inf")
    value = {
        "a": [1, 2.5, 0.1 + 0.2, -inf, None, True, "x"],
        3: (torch.arange(3), {"dict": ()}),
        "b": torch.randn(2, 3, dtype=torch.bfloat16),
    }
    write_state(tmp_path / "x", value)
    found = read_state(tmp_path / "x")
    assert found["a"] == value["a"]
    assert isinstance(found[3], tuple)
    assert torch.equal(found[3][0], torch.arange(3))
    assert found[3][1] == {"dict": ()}
    assert torch.equal(found["b"], value["b"])
    with pytest.raises(TypeError, match="no plain value"):
        write_state(tmp_path / "y", {"a": Trap()})


@pytest.mark.parametrize("damage", [cut, of_another, a_list, deep, binary])
def test_a_damaged_plan_of_a_compile_is_told(tmp_path: pathlib.Path, damage: Any) -> None:
    place = tmp_path / "plan.json"
    place.write_text(json.dumps({"identity": {}, "plan": "{}"}))
    damage(place)
    with pytest.raises(PlanError, match=r"plan\.json cannot be read .*: remove"):
        known_plan(place)
