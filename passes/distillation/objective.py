"""What a distillation run minimises: which outputs, by which loss, with which use of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .losses import (
    IGNORED,
    DistillError,
    EmbeddingLoss,
    distillation_loss,
    embedding_loss,
    next_token_labels,
)
from .outputs import Match, Which, classes_last, matched_outputs, position_mask

Kind = Literal["auto", "logits", "embedding"]


@dataclass
class Objective:
    """The loss of one batch; "auto" is decided on the first batch and kept, the use of labels on
    the first that has any.

    "auto" is "logits" where there are class labels or the output is named logits, otherwise
    "embedding". Float labels, outputs one value wide and those named as embeddings or hidden states
    are "embedding" too: regression and multi-label outputs are not the logits of a softmax, and a
    softmax over one value is constant.

    `shifted`: whether the model's own loss moves labels by one, None where that is not known; they
    may come moved already, which their values tell where there are tokens.

    After a call, `kind`, `outputs` (names) and `labels` (their use, in words) say what was decided.
    """

    kind: Kind = "auto"
    temperature: float = 4.0
    alpha: float = 0.5
    embedding: EmbeddingLoss = "mse+cosine"
    output: Which = None
    shifted: bool | None = None
    outputs: tuple[str, ...] = ()
    labels: str = "none"

    def __call__(
        self, student: Any, teacher: Any, labels: Tensor | None, arguments: Mapping[str, Any]
    ) -> Tensor:
        """The mean loss over the matched outputs, a scalar on the student's device.

        Args:
            student, teacher: what the two models return for the batch.
            labels: class indices, one per position, -100 for none.
            arguments: forward's arguments by name; the attention mask and token ids are used.

        Raises:
            DistillError: outputs or labels that do not fit each other.
        """
        matches = matched_outputs(student, teacher, self.output)
        if not self.outputs:
            self._decide(matches, labels)
        if labels is not None and self.labels == "none":
            self.labels = self._use_of(labels, matches, arguments)
        if self.labels in ("none", "unused"):
            labels = None
        losses = [self._loss(match, labels, arguments) for match in matches]
        return torch.stack(losses).mean()

    def _decide(self, matches: list[Match], labels: Tensor | None) -> None:
        self.outputs = tuple(match.name for match in matches)
        if self.kind == "auto":
            named = labels is not None or all(match.is_logits for match in matches)
            continuous = labels is not None and labels.is_floating_point()
            embedding = any(match.is_embedding for match in matches)
            classes = classes_last(matches[0].teacher, labels)
            softmax = named and not continuous and not embedding and classes.shape[-1] > 1
            self.kind = "logits" if softmax else "embedding"

    def _use_of(self, labels: Tensor, matches: list[Match], arguments: Mapping[str, Any]) -> str:
        """What labels are for, by the first batch that has any."""
        if self.kind == "embedding":
            if self.alpha == 0:
                raise DistillError(
                    "alpha=0 asks for the labels alone, which the distance of embeddings does not"
                    ' use: give class indices with objective="logits", or leave alpha out.'
                )
            return "unused"
        if len(matches) > 1:
            raise DistillError(
                f"Labels cannot belong to all of the outputs {', '.join(self.outputs)}:"
                " drop them from the batches, or name one output with output=."
            )
        if not bool((labels != IGNORED).any()):
            return "none"
        classes = classes_last(matches[0].teacher, labels)
        shifted = bool(self.shifted)
        if self.shifted is not False and "input_ids" in arguments:
            shifted = repeat_input(labels, arguments)
        return "next token" if classes.ndim == 3 and shifted else "used"

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kind", "outputs", "labels")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _loss(self, match: Match, labels: Tensor | None, arguments: Mapping[str, Any]) -> Tensor:
        student = classes_last(match.student, labels)
        teacher = classes_last(match.teacher.to(student.device), labels)
        mask = position_mask(arguments, student)
        width = student.shape[-1]
        if self.kind == "embedding":
            # One number has no direction but its sign, so a cosine would teach nothing.
            kind = self.embedding if width > 1 else "mse"
            return embedding_loss(student, teacher, kind, mask=mask)
        if width == 1:
            raise DistillError(
                f'The output "{match.name}" is one value wide, where a softmax is constant:'
                ' use objective="embedding".'
            )
        if labels is not None and self.labels == "next token":
            if mask is not None:
                labels = labels.masked_fill(~mask, IGNORED)
            labels = next_token_labels(labels)
        return distillation_loss(
            student, teacher, labels, temperature=self.temperature, alpha=self.alpha, mask=mask
        )


def repeat_input(labels: Tensor, arguments: Mapping[str, Any]) -> bool:
    """True where `[B, S]` labels are the input tokens themselves, -100 apart.

    That is how transformers' causal models take labels, which they move by one inside their loss.
    Compared in place they would teach the student to copy its input. Labels of masked tokens, of
    token classes, and labels already moved differ from the input.
    """
    tokens = arguments.get("input_ids")
    decodes = any(key.startswith("decoder_") for key in arguments)
    if decodes or not isinstance(tokens, Tensor) or tokens.shape != labels.shape:
        return False
    labelled = labels != IGNORED
    return bool(labelled.any()) and bool((labels == tokens)[labelled].all())
