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

from ..capture.batches import split_batch
from ..capture.eval_mode import eval_mode
from ..errors import SourceError

IGNORED = -100


@dataclasses.dataclass(eq=False)
class Metric:
    """Called on a model it gives a number, higher is better, over the batches.

    With labels: "accuracy" for classes (of samples or tokens), "log-likelihood" in nats a token
    where the model predicts its own input (causal and masked language models), "R2" for real
    numbers, and for models that give one. Without: "cosine", the mean cosine of the outputs with
    those of `original`, padding left out.

    Raises SourceError where labels do not fit the model's outputs.
    """

    batches: Iterable[Any]
    original: nn.Module
    causal: bool = False
    language: bool = False

    @functools.cached_property
    def name(self) -> str:
        """What the number is."""
        place = next((p.device for p in self.original.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            args, kwargs, labels = split_batch(next(iter(self.batches)), place)
        if labels is None:
            return "cosine"
        with torch.no_grad(), eval_mode(self.original):
            width = _first(self.original(*args, **kwargs)).shape[-1]
        if labels.is_floating_point() or width == 1:
            return "R2"
        return "log-likelihood" if self.language else "accuracy"

    def __call__(self, model: nn.Module) -> float:
        kind = self.name
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        pairs: list[tuple[Tensor, Tensor]] = []
        count, total = 0, 0.0
        with torch.no_grad(), eval_mode(model, self.original), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in self.batches:
                args, kwargs, labels = split_batch(batch, place)
                found = _first(model(*args, **kwargs))
                if kind == "cosine":
                    there = next((p.device for p in self.original.parameters()), place)
                    own = split_batch(batch, there)
                    other = _first(self.original(*own[0], **own[1])).to(place)
                    found, other = (_unpadded(x, kwargs) for x in (found, other))
                    same = F.cosine_similarity(found.flatten(1), other.flatten(1), dim=-1)
                    count, total = count + len(same), total + float(same.double().sum())
                    continue
                assert labels is not None
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
                right = (
                    F.log_softmax(rows, -1).gather(1, wanted[:, None])
                    if self.language
                    else (rows.argmax(-1) == wanted)
                )
                count, total = count + len(wanted), total + float(right.double().sum())
        if kind == "R2":
            guess, truth = (torch.cat(x) for x in zip(*pairs, strict=True))
            spread = (truth - truth.mean()).square().sum().clamp_min(1e-12)
            return 1 - float((guess - truth).square().sum() / spread)
        return total / max(count, 1)


def _first(outputs: Any) -> Tensor:
    """The logits, else the first floating output."""
    logits = getattr(outputs, "logits", None)
    leaves = [logits] if isinstance(logits, Tensor) else pytree.tree_leaves(outputs)
    return next(x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())


def _alike(found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if found.shape[:-1] != labels.shape:
        raise _unfit(found, labels, "classes")
    return found.reshape(-1, found.shape[-1]), labels.reshape(-1)


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
