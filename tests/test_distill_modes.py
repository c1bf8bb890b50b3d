"""Distill: what is random or kept in train mode, and what accelerate leaves behind."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from test_distill import X, Y, distil, mlp, same, weights
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler.errors import ArgumentError
from prunec.passes.distillation.losses import DistillError
from prunec.passes.distillation.modes import in_training


class Dropping(nn.Module):
    """Drops as a layer, as a function, and between recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5))
        self.recurrent = nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.layer(x), 0.5, self.training)
        return self.last(self.recurrent(hidden.unsqueeze(1))[0][:, 0])


def test_nothing_drops_unless_asked() -> None:
    torch.manual_seed(0)
    start = Dropping()

    def trained(seed: int, dropout: bool) -> list[Tensor]:
        student = copy.deepcopy(start)
        distil(student, mlp(16), [(X[:8], Y[:8])], seed=seed, dropout=dropout)
        assert student.recurrent.dropout == 0.5
        return weights(student)

    assert same(trained(0, False), trained(1, False))
    assert not same(trained(0, True), trained(1, True))
    assert not same(trained(0, True), trained(0, False))


class Switched(nn.Module):
    """Keeps the mode in an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.noise = nn.Linear(6, 16), nn.Linear(16, 3), False

    def train(self, mode: bool = True) -> Switched:
        super().train(mode)
        self.noise = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x).relu(), 0.5, self.noise))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_a_mode_kept_by_the_class_follows(mode: bool, dropout: bool) -> None:
    student, teacher = Switched().train(mode), Switched().train(not mode)
    seen, measured = [], []
    student.first.register_forward_hook(lambda m, i, o: seen.append(student.noise))

    def metric(model: Any) -> float:
        measured.append(model.noise)
        return 0.0

    distil(student, teacher, [X], steps=3, dropout=dropout, metric=metric, evaluate_every=1)
    assert seen == [dropout] * 3
    assert measured == [False] * 4
    assert (student.noise, student.training) == (mode, mode)
    assert (teacher.noise, teacher.training) == (not mode, not mode)


def test_a_compile_gives_modes_kept_by_the_class_back() -> None:
    model = Switched().train()
    result = compiler.compile(
        model, (X,), target=compiler.Target(params=0.6), train=[X], measure=False
    )
    assert model.noise
    assert model.training
    assert result.model.noise
    assert result.model.training


def test_checkpointed_layers_drop_nothing_by_themselves() -> None:
    class Layer(nn.Module):
        gradient_checkpointing = True

        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.layerdrop = 0.5, 0.3

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.dropout, self.training)

    layer = Layer().eval()
    with in_training(layer, dropout=False):
        assert layer.training
        assert layer.layerdrop == 0
        assert torch.equal(layer(X), X)
    assert (layer.training, layer.dropout, layer.layerdrop) == (False, 0.5, 0.3)


def test_an_encoder_of_torch_with_frozen_layers_and_padding() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[:, -1] = True
            return self.last(self.encoder(x, src_key_padding_mask=padding))

    student = Encoder()
    student.encoder.layers[0].requires_grad_(False)
    before = weights(student)
    distil(student, Encoder(), [X.reshape(8, 4, 6)], steps=1)
    assert not same(before, weights(student))
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_accelerate_leaves_is_taken_away() -> None:
    student, kinds = mlp(8), []
    student[0].register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    before = vars(student).keys() | set()
    for _ in range(2):
        distil(student, mlp(16), [X], steps=1, precision="bf16")
        assert vars(student).keys() == before
    assert kinds == [torch.bfloat16] * 2


def test_the_metric_measures_the_model_as_it_will_be() -> None:
    student, kinds = mlp(8), []

    def metric(model: nn.Module) -> float:
        hook = model[0].register_forward_hook(lambda m, i, o: kinds.append(o.dtype))  # pyright: ignore[reportIndexIssue]
        model(X)
        hook.remove()
        return float("nan")

    result = distil(student, mlp(16), [X], steps=1, precision="bf16", metric=metric)
    assert kinds == [torch.float32] * 2
    assert "the metric never was a number, and the last weights were kept" in result.summary


def test_an_accelerator_of_the_caller_stays_as_it_is() -> None:
    own = Accelerator(cpu=True, gradient_accumulation_steps=4)
    try:
        distil(mlp(8), mlp(16), [X], steps=1, accumulate=2)
        assert own.gradient_accumulation_steps == 4
        with pytest.raises(DistillError, match="has an Accelerator of 'no'"):
            distil(mlp(8), mlp(16), [X], steps=1, precision="bf16")
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def test_random_states_of_python_and_numpy_are_the_callers() -> None:
    drawn = []

    def metric(_: nn.Module) -> float:
        drawn.append((random.random(), numpy.random.rand()))
        return 0.0

    states = random.getstate(), numpy.random.get_state()[1].tolist()
    for _ in range(2):
        distil(mlp(8), mlp(16), [X], steps=1, metric=metric)
    assert drawn[:2] == drawn[2:]
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states


def test_a_module_of_both_models_does_not_drop_in_the_teacher() -> None:
    student, teacher = mlp(8), mlp(16)
    student[3] = teacher[3]
    with pytest.raises(DistillError, match="3 is part of both models"):
        distil(student, teacher, dropout=True)
    distil(student, teacher)


@pytest.mark.parametrize("option", ["steps", "epochs", "seed", "patience", "checkpoint_every"])
def test_numbers_are_whole(option: str) -> None:
    with pytest.raises(ArgumentError, match=f"takes a whole number for '{option}', not 2.5"):
        distil(mlp(8), mlp(16), **{option: 2.5})


# Labels that do not come with the first batch.


def test_the_use_of_labels_is_decided_where_there_are_some() -> None:
    class Tokens(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.table, self.logits = nn.Embedding(9, 8), nn.Linear(8, 9)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"logits": self.logits(self.table(input_ids))}

    ids = torch.randint(0, 9, (4, 6))
    labelled = {"input_ids": ids, "labels": ids.clone()}
    first = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    for batches in ([first, labelled], [{"input_ids": ids}, labelled]):
        result = distil(Tokens(0), Tokens(1), batches, steps=2, alpha=0.0)
        assert result.details["labels"] == "next token"


def test_labels_alone_cannot_be_asked_of_an_embedding() -> None:
    with pytest.raises(DistillError, match="alpha=0 asks for the labels alone"):
        distil(mlp(8), mlp(16), [(X, torch.randn(32, 3))], alpha=0.0)
    assert "the labels were not used" in distil(mlp(8), mlp(16), [(X, torch.randn(32, 3))]).summary


def test_a_resumed_run_keeps_its_objective(tmp_path: Any) -> None:
    batches = [(X, Y), (X, None), (X, None), (X, None)]
    whole = mlp(8)
    distil(whole, mlp(16), batches, steps=4)
    student, calls = mlp(8), []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt

    hook = student.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        distil(student, mlp(16), batches, steps=4, checkpoint=tmp_path, checkpoint_every=2)
    hook.remove()
    resumed = mlp(8)
    result = distil(resumed, mlp(16), batches, steps=4, checkpoint=tmp_path, checkpoint_every=2)
    assert result.details["objective"] == "logits"
    assert same(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_teacher_or_of_other_data_is_refused(tmp_path: Any) -> None:
    distil(mlp(8), mlp(16), [(X, Y)], steps=2, checkpoint=tmp_path)
    with pytest.raises(DistillError, match=r"another run \(it differs in original\)"):
        distil(mlp(8), mlp(16, seed=5), [(X, Y)], steps=2, checkpoint=tmp_path)
    with pytest.raises(DistillError, match=r"another run \(it differs in data\)"):
        distil(mlp(8), mlp(16), [(X, Y.flip(0))], steps=2, checkpoint=tmp_path)
