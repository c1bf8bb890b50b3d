"""The losses of distillation: from a student's and a teacher's output to a number.

Losses are computed in float32 at least: a KL divergence in half precision loses its small terms.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compiler.capture.batches import IGNORED
from ...compiler.errors import PrunecError

EmbeddingLoss = Literal["mse", "cosine", "mse+cosine"]


class DistillError(PrunecError):
    """Distillation could not start, or had to stop; the message says what to change. `model`: of a
    run that stopped, the model with the last good weights."""

    model: nn.Module | None = None


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    alpha: float,
    mask: Tensor | None = None,
) -> Tensor:
    """alpha T² KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) CE, in nats, a scalar.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2; T²
    keeps the soft term's gradient at the scale of the hard one's. Without labels the result is the
    soft term alone, unweighted.

    Args:
        student_logits, teacher_logits: `[..., C]`, C classes; the other axes are positions.
        labels: `[...]`, class indices; -100 marks positions without one.
        mask: `[...]`, False at positions that count in neither term.

    Each term is the mean over its own positions, and 0 where it has none.

    Raises:
        DistillError: shapes that do not fit, or labels that are no class index below C.
    """
    _same_shape(student_logits, teacher_logits)
    positions = student_logits.shape[:-1]
    counted = _counted(mask, student_logits)
    student, teacher = _precise(student_logits), _precise(teacher_logits)

    log_q = F.log_softmax(student / temperature, dim=-1)
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    p = log_p.exp()
    # A class that the teacher rules out (logit -inf) adds 0, where the product would be NaN.
    divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)
    soft = temperature**2 * _mean(divergence, counted)
    if labels is None:
        return soft

    if labels.shape != positions or labels.is_floating_point() or labels.is_complex():
        raise DistillError(
            f"Labels of shape {list(labels.shape)} and type {labels.dtype} are no class indices for"
            f" logits of shape {list(student_logits.shape)}: give integers of shape"
            f' {list(positions)}, drop the labels, or use objective="embedding".'
        )
    labels = labels.long().masked_fill(~counted, IGNORED)
    labelled = labels != IGNORED
    classes = student_logits.shape[-1]
    if bool((labelled & ((labels < 0) | (labels >= classes))).any()):
        raise DistillError(
            f"A label lies outside 0..{classes - 1}, the classes of the matched output: check the"
            ' labels, or name another output with output="...".'
        )
    entropy = F.cross_entropy(
        student.reshape(-1, classes), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return alpha * soft + (1 - alpha) * _mean(entropy.reshape(positions), labelled)


def embedding_loss(
    student: Tensor,
    teacher: Tensor,
    kind: EmbeddingLoss = "mse",
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """How far `[..., D]` embeddings are from the teacher's: a scalar without unit.

    "mse" is ||s - t||² / ||t||² over all counted positions together, as in the global AdaPrune of
    Frantar and Alistarh, "SPDY" (2022). "cosine" is the mean of 1 - cos(s, t) along D, as in Sanh
    et al., "DistilBERT" (2019). "mse+cosine" is their sum.

    Args:
        mask: `[...]`, False at positions (padding) that do not count.

    Raises:
        DistillError: shapes that do not fit, or an unknown kind.
    """
    if kind not in ("mse", "cosine", "mse+cosine"):
        raise DistillError(
            f'The embedding loss "{kind}" is unknown: use "mse", "cosine" or "mse+cosine".'
        )
    _same_shape(student, teacher)
    counted = _counted(mask, student)
    student, teacher = _precise(student), _precise(teacher)
    loss = student.new_zeros(())
    if "mse" in kind:
        error = torch.where(counted, (student - teacher).square().sum(dim=-1), 0.0).sum()
        energy = torch.where(counted, teacher.square().sum(dim=-1), 0.0).sum()
        loss = loss + error / energy.clamp_min(torch.finfo(energy.dtype).tiny)
    if "cosine" in kind:
        loss = loss + _mean(1 - F.cosine_similarity(student, teacher, dim=-1), counted)
    return loss


def next_token_labels(labels: Tensor) -> Tensor:
    """`[B, S]` labels that repeat the input, moved so that position t holds token t + 1.

    The last position gets -100. Causal models of transformers shift inside their own loss.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the counted values, 0 where there are none."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)


def _counted(mask: Tensor | None, output: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(output.shape[:-1], dtype=torch.bool, device=output.device)
    if mask.shape != output.shape[:-1]:
        raise DistillError(
            f"A mask of shape {list(mask.shape)} does not fit an output of shape"
            f" {list(output.shape)}: give one value per position, {list(output.shape[:-1])}."
        )
    return mask > 0


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim == 0:
        raise DistillError(
            f"The student's output has shape {list(student.shape)} and the teacher's"
            f" {list(teacher.shape)}: match one that both have in the same shape, by output=."
        )
