"""A metric for a task, on labelled data or against the original's answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import batch_size
from ..capture.batches import IGNORED, split_batch
from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call
from ..capture.untouched import untouched
from ..errors import SourceError
from ..user_code import user_batches

MULTI_LABEL = "label accuracy at logit 0"


@dataclasses.dataclass(eq=False)
class Metric:
    """Called on a model it gives a number, higher is better, over the batches.

    With labels: "accuracy" for classes (of samples or tokens), "log-likelihood" in nats a token
    where the model predicts texts (causal, masked and sequence-to-sequence language models; the
    name says where a decoder is given no target but the text itself), "R2" for real numbers, and
    for models that give one. Where the configuration says multi-label, "label accuracy at logit 0":
    the share of all labels of all samples that the sign of their logit tells, so of rare labels a
    model that finds none has a high one. Without labels: "cosine", the mean cosine of the outputs
    with those of `original`, padding left out.

    It is nan for a model whose outputs are. `samples`: how many the last call read. Raises
    SourceError where labels do not fit the model's outputs, where there is no label to judge by,
    and for real numbers that are all equal.
    """

    batches: Iterable[Any]
    original: nn.Module
    causal: bool = False
    language: bool = False
    samples: int = dataclasses.field(default=0, init=False)

    @functools.cached_property
    def name(self) -> str:
        """What the number is."""
        place = next((p.device for p in self.original.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            args, kwargs, labels = split_batch(next(iter(self.batches)), place, self.original)
        if labels is None:
            return "cosine"
        args, kwargs = copied_call(args, kwargs)
        with torch.no_grad(), untouched(self.original), eval_mode(self.original):
            width = _first(self.original(*args, **kwargs)).shape[-1]
        config = getattr(self.original, "config", None)
        if getattr(config, "problem_type", None) == "multi_label_classification":
            return MULTI_LABEL
        if labels.is_floating_point() or width == 1:
            return "R2"
        if self.language and _repeats_input(labels, kwargs):
            return "log-likelihood of repeating the text (no target)"
        return "log-likelihood" if self.language else "accuracy"

    def __call__(self, model: nn.Module) -> float:
        kind = self.name
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        pairs: list[tuple[Tensor, Tensor]] = []
        count, total, samples = 0, 0.0, 0
        with torch.no_grad(), eval_mode(model, self.original), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in user_batches("the data to judge on", self.batches):
                args, kwargs, labels = split_batch(batch, place, self.original)
                own, named = copied_call(args, kwargs)
                found = _first(model(*own, **named))
                samples += batch_size(args, kwargs) or 0
                if kind == "cosine":
                    there = next((p.device for p in self.original.parameters()), place)
                    own, named, _ = split_batch(batch, there, self.original)
                    own, named = copied_call(own, named)
                    other = _first(self.original(*own, **named)).to(place)
                    found, other = (_unpadded(x, kwargs) for x in (found, other))
                    same = F.cosine_similarity(found.flatten(1), other.flatten(1), dim=-1)
                    count, total = count + len(same), total + float(same.double().sum())
                    continue
                if labels is None:
                    raise SourceError(
                        "some batches to judge on have labels and others none: give them to all."
                    )
                if kind == MULTI_LABEL:
                    fit = found.shape == labels.shape
                    if not fit or bool(((labels < 0) | (labels > 1)).any()):
                        raise _unfit(found, labels, "0 or 1 for each label")
                    right = torch.where(found.isnan(), torch.nan, (found > 0) == (labels > 0.5))
                    count, total = count + right.numel(), total + float(right.double().sum())
                    continue
                if kind == "R2":
                    if found.numel() != labels.numel():
                        raise _unfit(found, labels, "real values")
                    pairs.append((found.flatten().double().cpu(), labels.flatten().double().cpu()))
                    continue
                if self.causal:
                    found, labels = found[:, :-1], labels[:, 1:]
                found, labels = _alike(found, labels)
                used = labels != IGNORED
                rows, wanted = found[used].float(), labels[used]
                _require_classes(wanted, rows.shape[-1])
                right = (
                    F.log_softmax(rows, -1).gather(1, wanted[:, None])
                    if self.language
                    else torch.where(rows.isnan().any(-1), torch.nan, rows.argmax(-1) == wanted)
                )
                count, total = count + len(wanted), total + float(right.double().sum())
        self.samples = samples
        if kind == "R2" and pairs:
            guess, truth = (torch.cat(x) for x in zip(*pairs, strict=True))
            if truth.min() == truth.max():
                raise SourceError(
                    f"all {len(truth)} real values to judge by are equal, and R2 compares with "
                    "their spread: give --eval-data with different ones, or --evaluate."
                )
            spread = (truth - truth.mean()).square().sum().clamp_min(1e-12)
            return 1 - float((guess - truth).square().sum() / spread)
        if count == 0:
            raise SourceError(
                "the data to judge on hold no label, or could be read only once: give --eval-data "
                "with labels, from a factory that gives a list or a loader."
            )
        return total / count


def _first(outputs: Any) -> Tensor:
    """The logits, else the first floating output."""
    logits = getattr(outputs, "logits", None)
    leaves = [logits] if isinstance(logits, Tensor) else pytree.tree_leaves(outputs)
    return next(x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())


def _alike(found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if found.shape[:-1] != labels.shape:
        raise _unfit(found, labels, "classes")
    return found.reshape(-1, found.shape[-1]), labels.reshape(-1)


def _require_classes(labels: Tensor, classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise SourceError(
            f"label {int(outside[0])} of the data to judge on is none of the model's classes, 0 to "
            f"{classes - 1}: correct it, or write {IGNORED} where there is no label."
        )


def _repeats_input(labels: Tensor, kwargs: Mapping[str, Any]) -> bool:
    """Whether a decoder's labels are the very text that its encoder reads."""
    ids = kwargs.get("input_ids")
    if "decoder_input_ids" not in kwargs or not isinstance(ids, Tensor):
        return False
    same = ids.shape == labels.shape
    return same and bool(((labels == ids) | (labels == IGNORED)).all())


def _unfit(found: Tensor, labels: Tensor, what: str) -> SourceError:
    return SourceError(
        f"labels of shape {list(labels.shape)} are no {what} for outputs of shape "
        f"{list(found.shape)}: name the task or the label column, or give --evaluate."
    )


def _unpadded(values: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """[B, S, D] values, zero where the attention mask is."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and values.dim() == 3 and mask.shape == values.shape[:2]:
        return values * (mask > 0).unsqueeze(-1).to(values)
    return values


def metric_for(task: str, batches: Iterable[Any], original: nn.Module) -> Metric:
    """The metric of a task of `tasks.TASKS`."""
    language = task in ("text-generation", "fill-mask", "text2text-generation")
    return Metric(batches, original, causal=task == "text-generation", language=language)
