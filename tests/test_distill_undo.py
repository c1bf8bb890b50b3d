"""A training that ends worse than it began is undone, and said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_distill import mlp, same, weights
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.errors import ArgumentError
from prunec.passes.distill import Distill
from prunec.passes.distillation.undo import held_out


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(count, 16, 6, generator=generator))


def pair() -> tuple[nn.Module, nn.Module]:
    """A teacher, and a student that already answers almost as it does."""
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[2].bias += 1e-3
    return teacher, student


def train(student: nn.Module, teacher: nn.Module, loader: Any, **options: Any) -> Any:
    given = {"steps": 3, "learning_rate": 1.0, "progress": False, "objective": "embedding"}
    return Distill(loader, **{**given, **options}).train(student, teacher)


@pytest.mark.parametrize("count", [4, 40])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_training_that_ends_worse_is_undone(count: int, ema: float | None) -> None:
    teacher, student = pair()
    before = weights(student)
    result = train(student, teacher, batches(count), ema=ema)
    assert same(before, weights(student))
    assert not result.changed
    assert result.details["undone"]
    assert "undone: the loss rose" in result.summary
    first, last = result.details["loss of the outputs"]
    assert last > first


def test_a_training_that_helps_is_kept() -> None:
    teacher, student = mlp(16).eval(), mlp(8, seed=2)
    result = train(student, teacher, batches(), steps=30, learning_rate=1e-2)
    first, last = result.details["loss of the outputs"]
    assert last < first
    assert result.changed
    assert "undone" not in result.details


def test_undoing_can_be_switched_off() -> None:
    teacher, student = pair()
    before = weights(student)
    result = train(student, teacher, batches(), undo=False)
    assert not same(before, weights(student))
    assert "loss of the outputs" not in result.details
    with pytest.raises(ArgumentError, match="takes true or false for 'undo', not 1"):
        Distill(batches(), undo=1)  # type: ignore[arg-type]


def test_held_out_batches_of_a_list_are_not_trained_on() -> None:
    loader = batches(40)
    assert (held_out(loader), held_out(loader[:19]), held_out(iter(loader))) == (2, 0, 0)
    teacher, student = pair()
    seen: list[Tensor] = []
    student.register_forward_pre_hook(lambda m, x: seen.append(x[0]) if m.training else None)
    result = train(student, teacher, loader, steps=None, epochs=1, dropout=True)
    assert result.details["judged by"] == "held-out batches"
    assert len(seen) == 38
    assert not any(torch.equal(x, kept) for x in seen for kept in loader[-2:])


def test_running_statistics_come_back_too() -> None:
    teacher = mlp(16).eval()
    student = copy.deepcopy(teacher)
    before = weights(student)
    train(student, teacher, [10 * x + 5 for x in batches()])
    assert same(before, weights(student))


def test_a_resumed_training_is_judged_by_where_it_began(tmp_path: Any) -> None:
    teacher, student = pair()
    again = copy.deepcopy(student)
    before = weights(student)
    options: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_every": 1}
    train(student, teacher, batches(), undo=True, **options)
    result = train(again, teacher, batches(), undo=True, **options)
    assert result.details["resumed at"] == 3
    assert result.details["undone"]
    assert same(before, weights(again))


def test_a_compile_says_that_training_was_undone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    options = {"distill": {"learning_rate": 10.0, "steps": 3, "objective": "embedding"}}
    result = compiler.compile(
        model,
        (batches()[0],),
        target=compiler.Target(params=0.7),
        calibration=batches(8),
        train=batches(),
        options=options,
        measure=False,
    )
    assert any("training ended worse" in note for note in result.report.notes)
    x = torch.cat(batches())
    repaired = compiler.compile(
        model,
        (batches()[0],),
        target=compiler.Target(params=0.7),
        calibration=batches(8),
        measure=False,
    )
    torch.testing.assert_close(result.model(x), repaired.model(x))
    assert F.mse_loss(result.model(x), model(x)) < model(x).var()
    assert isinstance(passes.Distill(batches()).undo, bool)
