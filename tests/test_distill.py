"""Distill: what it trains, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from prunec.passes.distill import Distill
from prunec.passes.distillation.losses import DistillError, embedding_loss
from prunec.passes.distillation.steps import learning_rate_factor

torch.manual_seed(0)
X = torch.randn(32, 6)
Y = torch.randint(0, 3, (32,))
LOADER = [(X[:16], Y[:16]), (X[16:], Y[16:])]


def mlp(width: int, dropout: float = 0.0, classes: int = 3, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    )


def distil(student: nn.Module, teacher: nn.Module, loader: Any = LOADER, **options: Any) -> Any:
    given = {"learning_rate": 1e-2, "undo": False, **options}
    return Distill(loader, **given).train(student, teacher)


def weights(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# ---- what it trains ----


def test_the_student_approaches_the_teacher_without_labels() -> None:
    teacher, student = mlp(32).eval(), mlp(8, seed=2).eval()

    def distance() -> float:
        return F.mse_loss(student(X), teacher(X)).item()

    before = distance()
    result = distil(student, teacher, DataLoader(TensorDataset(X), 16, shuffle=True), epochs=60)
    assert distance() < before / 3
    assert result.changed
    assert result.details["loss_after"] < result.details["loss_before"] / 2
    assert result.details["steps"] == 120
    assert len(result.details["loss_curve"]) <= 100
    assert result.summary.startswith("embedding loss ")
    assert result.summary.endswith("in 120 steps")


def test_the_first_step_is_adamws_on_the_textbook_gradient() -> None:
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    w = student.weight.detach().clone().requires_grad_()
    b = student.bias.detach().clone().requires_grad_()
    zs, zt = F.linear(X, w, b), teacher(X).detach()
    kl = (F.softmax(zt / 2, -1) * (F.log_softmax(zt / 2, -1) - F.log_softmax(zs / 2, -1))).sum(-1)
    (0.3 * 4 * kl.mean() + 0.7 * F.cross_entropy(zs, Y)).backward()
    assert w.grad is not None
    assert b.grad is not None

    options: dict[str, Any] = {"temperature": 2, "alpha": 0.3, "clip": None, "warmup": 0}
    student.weight.grad = torch.ones_like(w)  # a left-over gradient must not be added
    distil(student, teacher, [(X, Y)], steps=1, weight_decay=0.1, **options)
    # Adam's first step has length learning_rate along each sign; only the matrix decays.
    torch.testing.assert_close(student.weight, w - 1e-2 * 0.1 * w - 1e-2 * w.grad.sign())
    torch.testing.assert_close(student.bias, b - 1e-2 * b.grad.sign())
    assert student.weight.grad is None


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_every_step_has_its_rate_and_a_clipped_gradient(clip: float | None) -> None:
    rates, norms = [], []

    def watch(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad.norm() for g in optimizer.param_groups for p in g["params"]]
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(torch.stack(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(watch)
    try:
        distil(mlp(8), mlp(16), epochs=5, warmup=0.2, clip=clip, temperature=50.0, alpha=1.0)
    finally:
        hook.remove()
    assert rates == pytest.approx(
        [1e-2 * learning_rate_factor(step, 10, 0.2) for step in range(10)]
    )
    assert all(norm < 1.01e-3 if clip else norm > 1e-2 for norm in norms)


def test_the_teacher_is_untouched() -> None:
    teacher, student = mlp(16, dropout=0.5).train(), mlp(8)
    teacher[1].eval()  # a mixed state must come back as it was
    before, modes = weights(teacher), [m.training for m in teacher.modules()]
    distil(student, teacher)
    assert same(before, weights(teacher))
    assert [m.training for m in teacher.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_the_teacher_answers_in_eval_mode() -> None:
    teacher = mlp(16, dropout=0.5).train()
    seen = []
    teacher[3].register_forward_hook(lambda m, i, o: seen.append(m.training or o.requires_grad))
    distil(mlp(8), teacher)
    assert seen == [False] * 6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_the_student_learns_statistics_and_returns_to_its_modes(
    training: bool, dropout: bool
) -> None:
    student = mlp(8).train(training)
    student[2].eval()
    modes = [m.training for m in student.modules()]
    seen = []
    for at in (1, 3):
        student[at].register_forward_hook(lambda m, i, o: seen.append(m.training))
    mean = student[1].running_mean.clone()
    distil(student, mlp(16), dropout=dropout)
    assert seen == [True, dropout] * 6
    assert [m.training for m in student.modules()] == modes
    assert not torch.equal(mean, student[1].running_mean)
    assert student[1].num_batches_tracked == 6


def test_frozen_parameters_stay_frozen() -> None:
    student = mlp(8)
    student[0].requires_grad_(False)
    frozen, free = student[0].weight.clone(), student[4].weight.clone()
    distil(student, mlp(16))
    assert torch.equal(frozen, student[0].weight)
    assert not student[0].weight.requires_grad
    assert not torch.equal(free, student[4].weight)


def test_seeded_and_without_trace_in_the_callers_random_state() -> None:
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)

    def trained(seed: int) -> list[Tensor]:
        teacher, student = mlp(16), mlp(8, dropout=0.5)
        torch.seed()  # whatever the caller drew before
        state = torch.get_rng_state()
        distil(student, teacher, loader, seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        return weights(student)

    first = trained(0)
    assert same(first, trained(0))
    assert not same(first, trained(1))


def test_a_graph_module_is_a_student_like_any_other() -> None:
    teacher, student = mlp(16), torch.fx.symbolic_trace(mlp(8))
    before = weights(student)
    distil(student, teacher)
    assert not same(before, weights(student))


def test_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        assert distil(mlp(8), mlp(16)).details["steps"] == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_and_back() -> None:
    teacher, student = mlp(16), mlp(8)
    kept = [*teacher.state_dict(keep_vars=True).values()]
    live = [*student.state_dict(keep_vars=True).values()]
    memory = [tensor.data_ptr() for tensor in kept + live]
    before = weights(student)
    assert distil(student, teacher, device="cuda").details["steps"] == 6
    assert [tensor.data_ptr() for tensor in kept + live] == memory
    assert same([t.detach() for t in live], weights(student))
    assert not same(before, weights(student))


def test_another_device_is_given_back_in_the_same_memory(monkeypatch) -> None:
    # Without an accelerator, a second CPU device: the model moves by copying, as to any other.
    monkeypatch.setattr("prunec.passes.distillation.borrowed._is_on", lambda here, device: False)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self._apply(torch.clone))
    teacher, student = mlp(16), mlp(8)
    twin = mlp(8)
    live = [*student.state_dict(keep_vars=True).values()]
    memory = [tensor.data_ptr() for tensor in live]
    kept = weights(teacher)
    distil(student, teacher, device="cpu")
    distil(twin, teacher)
    assert [tensor.data_ptr() for tensor in live] == memory
    assert same([t.detach() for t in live], weights(student))
    assert same(weights(twin), weights(student))
    assert same(kept, weights(teacher))


def test_padding_does_not_count() -> None:
    class Embedder(nn.Linear):
        def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"last_hidden_state": super().forward(x)}

    x, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    teacher, student = Embedder(6, 4), Embedder(6, 4)
    s, t = (model(x, mask)["last_hidden_state"][mask > 0] for model in (student, teacher))
    expected = embedding_loss(s, t, "mse+cosine").item()
    for batch in ({"x": x, "attention_mask": mask}, ((x, mask), None)):
        details = distil(copy.deepcopy(student), teacher, [batch], steps=1).details
        assert details["objective"] == "embedding"
        assert details["outputs"] == ["last_hidden_state"]
        assert details["loss_before"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_a_causal_model_give_its_own_loss() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, **off)
    torch.manual_seed(0)
    teacher, student = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    ids, mask = torch.randint(0, 17, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}
    with torch.no_grad():
        own = student(**{**batch, "labels": ids.masked_fill(mask == 0, -100)}).loss.item()
    details = distil(student, teacher, [batch], steps=1, alpha=0.0).details
    assert (details["labels"], details["outputs"]) == ("next token", ["logits"])
    assert details["loss_before"] == pytest.approx(own, rel=1e-5)


# ---- what it refuses ----


def test_a_bad_batch_leaves_the_last_good_weights() -> None:
    student = mlp(8)
    before = [p.detach().clone() for p in student.parameters()]
    with pytest.raises(DistillError, match=r"not finite at step 2 .* lower learning_rate"):
        distil(student, mlp(16), [X, X * 1e35])
    # The first loss was finite, so its weights, the initial ones, are the last known to be good.
    assert same(before, [p.detach() for p in student.parameters()])
    assert all(tensor.isfinite().all() for tensor in weights(student))
    assert all(p.grad is None for p in student.parameters())
    assert student[1].num_batches_tracked == 1


def test_a_diverged_last_step_is_noticed() -> None:
    student = nn.Linear(6, 3)
    nn.init.constant_(student.weight, 4.0)
    options = {"learning_rate": 3e37, "weight_decay": 10, "warmup": 0}  # 4 times 3e38 overflows
    with pytest.raises(DistillError, match="not finite"):
        distil(student, nn.Linear(6, 3), [X], steps=1, **options)
    assert all(tensor.isfinite().all() for tensor in weights(student))


@pytest.mark.parametrize(
    ("loader", "options", "remedy"),
    [
        ([], {}, "empty: pass at least one batch"),
        (iter([]), {"steps": 2}, "empty"),
        (iter(LOADER), {"epochs": 2}, "read only once, so 2 epochs .* pass a list or a DataLoader"),
        (iter(LOADER), {"steps": 5}, "ended after 2 of 5 batches .* pass a list or a DataLoader"),
        (X, {}, "Tensor, which does not yield batches: pass a DataLoader"),
        (TensorDataset(X), {}, "TensorDataset, which does not yield batches"),
        (None, {}, "NoneType, which does not yield batches"),
        (LOADER, {"epochs": 0}, "epochs=0 must be at least 1"),
        (LOADER, {"steps": 0}, "steps=0"),
        (LOADER, {"temperature": 0}, "temperature=0"),
        (LOADER, {"alpha": 1.5}, "alpha=1.5 must be between 0 and 1"),
        (LOADER, {"warmup": 1.0}, "warmup"),
        (LOADER, {"clip": 0}, "clip"),
        (LOADER, {"learning_rate": 0}, "learning_rate"),
        (LOADER, {"objective": "kd"}, "auto or logits or embedding"),
        (LOADER, {"embedding_loss": "l1"}, "mse or cosine"),
        ([(X, Y + 1)], {}, r"outside 0\.\.2"),
        ([(X, Y, Y)], {}, "batch of 3 items is ambiguous"),
    ],
)
def test_refuses(loader: Any, options: dict[str, Any], remedy: str) -> None:
    from prunec.compiler.errors import PrunecError

    with pytest.raises(PrunecError, match=remedy):
        distil(mlp(8), mlp(16), loader, **options)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(6)


def test_steps_that_cannot_be_planned_are_refused_before_anything_runs() -> None:
    with pytest.raises(DistillError, match="read only once"):
        Distill(iter(LOADER))
    with pytest.raises(DistillError, match="has no length"):
        Distill(DataLoader(Endless(), batch_size=2))
    assert Distill(DataLoader(Endless(), batch_size=2), steps=3).steps == 3


def test_refuses_students_that_cannot_train() -> None:
    with pytest.raises(DistillError, match="set requires_grad"):
        distil(mlp(8).requires_grad_(False), mlp(16))
    with pytest.raises(DistillError, match="float16"):
        distil(mlp(8).half(), mlp(16))
    unreachable = mlp(8)
    unreachable[4].register_forward_hook(lambda m, i, o: o.detach())
    with pytest.raises(DistillError, match="No trainable parameter reaches the output output"):
        distil(unreachable, mlp(16))
    with pytest.raises(DistillError, match="one value wide"):
        distil(mlp(8, classes=1), mlp(16, classes=1), [X], objective="logits")


def test_refuses_to_train_in_the_teachers_memory() -> None:
    teacher, student = mlp(8), mlp(8)
    student[1].running_var = teacher[1].running_var
    with pytest.raises(DistillError, match=r"memory of 1\.running_var"):
        distil(student, teacher)
    student = mlp(8)
    student[4].weight.data = teacher[4].weight.data[:, :]
    with pytest.raises(DistillError, match=r"memory of 4\.weight"):
        distil(student, teacher)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_override_epochs(steps: int) -> None:
    student = mlp(8)
    details = distil(student, mlp(16), steps=steps).details
    assert student[1].num_batches_tracked == len(details["loss_curve"]) == steps


def test_a_generator_is_enough_for_a_number_of_steps() -> None:
    assert distil(mlp(8), mlp(16), iter(LOADER), steps=2).details["steps"] == 2


def test_warm_up_and_cosine() -> None:
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert 0 < factors[9] < 0.05
    assert learning_rate_factor(0, 1, 0.1) == 1


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_shows_on_terminals_only_when_asked(progress, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    distil(mlp(8), mlp(16), progress=progress)
    assert ("loss" in capfd.readouterr().err) is progress


def test_options_are_json() -> None:
    options = Distill(DataLoader(TensorDataset(X)), temperature=2.0).options()
    assert options["train_loader"] == "DataLoader"
    assert options["temperature"] == 2.0
