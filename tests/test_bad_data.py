"""Calibration data, training data, metrics and callbacks that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from refused import X, refused, small
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prunec import compiler, passes
from prunec.compiler.user_code import UserCodeError

HALF = compiler.Target(params=0.5)


def compiled(**options: Any) -> compiler.Result:
    return compiler.compile(small(), (X,), **{"target": HALF, "measure": False, **options})


def broken_disk() -> Iterator[Tensor]:
    yield X
    raise OSError("disk [bold]gone[/bold]")


class Broken(Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise KeyError("no such sample")
        return X[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: 5, ("calibration", "int", "DataLoader, or a list of batches")),
        (lambda: "texts", ("calibration", "str", "list of batches")),
        (lambda: X, ("calibration", "Tensor", "list of batches")),
        (lambda: {"input": X}, ("calibration", "dict", "list of batches")),
        (lambda: iter([]), ("calibration", "gave no batch", "a list or a DataLoader")),
        (lambda: [{"zz": X}], ("'zz'", "it takes input")),
        (lambda: [{}], ("keys []", "names of forward's arguments")),
        (lambda: [None], ("NoneType", "a tensor, a tuple")),
        (lambda: [(X, X)], ("it takes input",)),
        (lambda: [X[:, :3]], ("axis 1 of 'input' is 3",)),
        (broken_disk, ("batch 2 of calibration", "test_bad_data.py:", "disk [bold]gone")),
        (lambda: DataLoader(Broken(), 2), ("batch 2 of calibration", "test_bad_data.py:")),
    ],
)
def test_calibration_that_cannot_be_read_is_named(
    given: Callable[[], Any], words: tuple[str, ...]
) -> None:
    refused(lambda: compiled(calibration=given()), *words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: 5, ("train", "int", "DataLoader")),
        (lambda: [], ("train_loader is empty",)),
        (lambda: [(X, "a")], ("Labels must be a tensor", "torch.as_tensor")),
        (lambda: [(X, X, X)], ("3 items is ambiguous", "((a, b), labels)")),
        (lambda: DataLoader(Broken(), 2), ("batch 2 of train", "test_bad_data.py:")),
    ],
)
def test_training_data_that_cannot_be_read_is_named(
    given: Callable[[], Any], words: tuple[str, ...]
) -> None:
    refused(lambda: compiled(train=given()), *words)


def fails(model: nn.Module) -> float:
    raise ValueError("no metric today")


def leaves(model: nn.Module) -> float:
    sys.exit(3)


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (fails, ("fails on the original model", "test_bad_data.py:", "no metric today")),
        (leaves, ("leaves on the original model ended the process", "exit code 3", "return")),
        (lambda model: None, ("NoneType", "one finite number")),
        (lambda model: "0.5", ("str", "one finite number")),
        (lambda model: float("nan"), ("nan", "one finite number")),
        (lambda model: torch.ones(3), ("Tensor", "one finite number")),
        (lambda: 1.0, ("on the original model", "positional argument")),
        (5, ("'evaluate'", "a function")),
    ],
)
def test_a_metric_that_gives_no_number_is_named(evaluate: Any, words: tuple[str, ...]) -> None:
    refused(lambda: compiled(evaluate=evaluate), *words)


def test_a_metric_may_give_a_tensor_of_one_number() -> None:
    found = compiled(evaluate=lambda model: torch.tensor(0.5))
    assert found.report.quality


def test_the_cause_of_an_error_in_the_users_code_is_kept() -> None:
    with pytest.raises(UserCodeError) as error:
        compiled(evaluate=fails)
    assert isinstance(error.value.__cause__, ValueError)


def test_an_interruption_in_the_users_code_passes() -> None:
    def interrupted(model: nn.Module) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(evaluate=interrupted)


def test_a_callback_that_raises_is_named() -> None:
    def callback(*given: Any) -> None:
        raise RuntimeError("no terminal")

    refused(lambda: compiled(callback=callback), "callback raised", "test_bad_data.py:")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda model: None, ("metric gave NoneType at step 0", "one number")),
        (fails, ("metric at step 0", "no metric today")),
    ],
)
def test_a_metric_of_the_training_is_named(metric: Any, words: tuple[str, ...]) -> None:
    step = passes.Distill([X], steps=2, metric=metric, progress=False)
    steps = [passes.MagnitudeScore(), passes.PruneChannels(0.5), passes.SparseToDense(), step]
    graph = compiler.capture(small(), (X,))
    refused(lambda: compiler.PassManager(steps).run(graph), *words)
