"""The losses, against numbers worked out by hand and the textbook formula written in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prunec.passes.distillation.losses import (
    DistillError,
    distillation_loss,
    embedding_loss,
    next_token_labels,
)


def textbook(zs, zt, labels, temperature, alpha, counted):
    """The formula of Hinton et al., one position at a time."""

    def softmax(z):
        e = np.exp(z - z.max())
        return e / e.sum()

    soft, hard = [], []
    for index in np.ndindex(*zs.shape[:-1]):
        if not counted[index]:
            continue
        p, q = softmax(zt[index] / temperature), softmax(zs[index] / temperature)
        soft.append(float((p * np.log(p / q)).sum()))
        if labels[index] != -100:
            hard.append(-math.log(softmax(zs[index])[labels[index]]))
    return alpha * temperature**2 * np.mean(soft) + (1 - alpha) * np.mean(hard)


def test_two_classes_by_hand() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # (3/4, 1/4) against (1/2, 1/2)
    soft = distillation_loss(student, teacher, temperature=1.0, alpha=0.25)
    assert soft.item() == pytest.approx(kl, abs=1e-6)
    both = distillation_loss(student, teacher, torch.tensor([1]), temperature=1.0, alpha=0.25)
    assert both.item() == pytest.approx(0.25 * kl + 0.75 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (4.0, 0.5), (2.5, 0.9)])
def test_textbook_formula(shape: tuple[int, ...], temperature: float, alpha: float) -> None:
    rng = np.random.default_rng(0)
    zs, zt = rng.normal(size=(2, *shape, 7)) * 3
    labels = rng.integers(0, 7, shape)
    labels.flat[1] = -100
    counted = np.ones(shape, dtype=bool)
    counted.flat[2] = False
    value = distillation_loss(
        torch.tensor(zs),
        torch.tensor(zt),
        torch.tensor(labels),
        temperature=temperature,
        alpha=alpha,
        mask=torch.tensor(counted).long(),
    )
    expected = textbook(zs, zt, labels, temperature, alpha, counted)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_without_labels_alpha_does_not_matter() -> None:
    zs, zt = torch.randn(2, 6, 5)
    a, b = (distillation_loss(zs, zt, temperature=2.0, alpha=alpha) for alpha in (0.0, 0.7))
    assert a.item() == b.item() > 0


def test_no_labelled_position_leaves_the_soft_term() -> None:
    zs, zt = torch.randn(2, 6, 5)
    none = torch.full((6,), -100)
    soft = distillation_loss(zs, zt, temperature=2.0, alpha=1.0)
    value = distillation_loss(zs, zt, none, temperature=2.0, alpha=0.25)
    assert value.item() == pytest.approx(0.25 * soft.item())
    nothing = distillation_loss(zs, zt, none, temperature=2.0, alpha=0.25, mask=torch.zeros(6))
    assert nothing.item() == 0


def test_a_class_ruled_out_by_both_is_finite_with_its_gradient() -> None:
    zs = torch.tensor([[1.0, 0.5, -math.inf]], requires_grad=True)
    zt = torch.tensor([[0.0, 2.0, -math.inf]])
    value = distillation_loss(zs, zt, temperature=2.0, alpha=0.5)
    value.backward()
    expected = distillation_loss(zs[:, :2], zt[:, :2], temperature=2.0, alpha=0.5)
    assert value.item() == pytest.approx(expected.item())
    assert zs.grad is not None
    assert zs.grad.isfinite().all()


def test_gradient_is_the_closed_form() -> None:
    # d/dz_s of T² KL is T (softmax(z_s / T) - softmax(z_t / T)), here over two positions.
    zs, zt = torch.randn(2, 2, 5, dtype=torch.float64)
    zs.requires_grad_()
    distillation_loss(zs, zt, temperature=3.0, alpha=1.0).backward()
    expected = 3.0 * ((zs / 3).softmax(-1) - (zt / 3).softmax(-1)) / 2
    assert zs.grad is not None
    torch.testing.assert_close(zs.grad, expected.detach())


def test_half_precision_is_computed_in_float32() -> None:
    zs, zt = (torch.randn(2, 4, 300) * 5).half()
    low = distillation_loss(zs, zt, temperature=4.0, alpha=1.0)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(
        distillation_loss(zs.double(), zt.double(), temperature=4.0, alpha=1.0).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (torch.tensor([0, 3]), r"outside 0\.\.2"),
        (torch.tensor([0, -1]), r"outside 0\.\.2"),
        (torch.tensor([0.0, 1.0]), "drop the labels"),
        (torch.tensor([[0], [1]]), "drop the labels"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, remedy: str) -> None:
    with pytest.raises(DistillError, match=remedy):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), labels, temperature=1, alpha=0.5)


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(DistillError, match=r"\[2, 3\] and the teacher's \[2, 4\]"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1, alpha=0.5)
    with pytest.raises(DistillError, match="mask of shape"):
        embedding_loss(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3))
    with pytest.raises(DistillError, match="unknown"):
        embedding_loss(torch.zeros(2, 3), torch.zeros(2, 3), "l1")  # type: ignore[arg-type]


def test_embeddings_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]])
    assert embedding_loss(student, teacher).item() == pytest.approx(10 / 25)
    assert embedding_loss(student, teacher, "cosine").item() == pytest.approx(1 - 20 / 25)
    assert embedding_loss(student, teacher, "mse+cosine").item() == pytest.approx(0.6)


@pytest.mark.parametrize("kind", ["mse", "cosine", "mse+cosine"])
def test_masked_embeddings_do_not_count(kind) -> None:
    student, teacher = torch.randn(2, 2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    full = embedding_loss(student, teacher, kind, mask=mask)
    kept = embedding_loss(student[mask > 0], teacher[mask > 0], kind)
    assert full.item() == pytest.approx(kept.item())
    assert full.item() != pytest.approx(embedding_loss(student, teacher, kind).item())


def test_mse_is_relative_to_the_teachers_energy() -> None:
    student, teacher = torch.randn(2, 8, 4)
    small = embedding_loss(student * 1e-3, teacher * 1e-3)
    assert small.item() == pytest.approx(embedding_loss(student, teacher).item(), rel=1e-4)
    assert embedding_loss(teacher, teacher, "mse+cosine").item() == pytest.approx(0, abs=1e-6)


def test_next_token_labels() -> None:
    labels = torch.tensor([[5, 6, 7], [8, -100, 9]])
    assert next_token_labels(labels).tolist() == [[6, 7, -100], [-100, 9, -100]]
