"""What the repair benchmark cuts: three trained models, where to cut them, how they are judged."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_transformer
import corpus
import minilm
import other_text
import plain_digits
import torch
from torch import Tensor, nn
from trained_weights import kept

from prunec import compiler

CALIBRATION_IMAGES = 256
CALIBRATION_WINDOWS = 96  # of 128 bytes
CALIBRATION_PARAGRAPHS = 600
HELD_OUT_WINDOWS = 128
HELD_OUT_PARAGRAPHS = 300
LENGTH = 128  # tokens of a paragraph that are read


@dataclasses.dataclass(frozen=True)
class Width:
    """One column of the table: the share of heads, and of channels and hidden units, that stays."""

    name: str
    heads: float
    channels: float


HALVES = tuple(Width(f"1/{n}", 1 / n, 1 / n) for n in (2, 4, 8))
MILD = Width("2/3, 1/2", 2 / 3, 1 / 2)


@dataclasses.dataclass
class Subject:
    """A trained model in eval mode and how it is cut and judged.

    `kinds`: the kinds of dimension that PruneChannels cuts; `heads`: whether PruneHeads does too.
    `labelled` gives (forward arguments, loss) for the peer that needs gradients of a loss; None
    where there are no labels. `judge` compares a smaller model with this one on held-out inputs.
    """

    name: str
    model: nn.Module
    kinds: tuple[str, ...]
    heads: bool
    calibration: list[Any]
    widths: tuple[Width, ...]
    judge: Callable[[nn.Module], dict[str, float]]
    labelled: Callable[[nn.Module], Tensor] | None

    @property
    def has_batch_norm(self) -> bool:
        """Whether there are running statistics to measure again."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())

    def example(self) -> Any:
        """A few rows of the first calibration batch."""
        batch = self.calibration[0]
        return {k: v[:4] for k, v in batch.items()} if isinstance(batch, dict) else batch[:4]

    def capture(self) -> compiler.Graph:
        """The model's graph."""
        example = self.example()
        if isinstance(example, dict):
            return compiler.capture(self.model, kwargs=example)
        return compiler.capture(self.model, (example,))


def digits(seed: int, cache: Path | None) -> Subject:
    """A plain CNN on 8x8 digits: every channel and hidden unit."""
    model = kept(cache, "digits", seed)
    images, labels = plain_digits.splits()["train"]
    chosen = _chosen(len(images), CALIBRATION_IMAGES, seed)
    held_out, truth = plain_digits.splits()["test"]
    before = _outputs(model, held_out)

    def judge(smaller: nn.Module) -> dict[str, float]:
        after = _outputs(smaller, held_out)
        right = (after.argmax(-1) == truth).double().mean().item()
        return {"accuracy": right, "KL": _divergence(before, after)}

    return Subject(
        "digits",
        model,
        ("channel", "hidden"),
        False,
        list(images[chosen].split(64)),
        HALVES,
        judge,
        lambda m: nn.functional.cross_entropy(m(images[chosen]), labels[chosen]),
    )


def byte_language_model(seed: int, cache: Path | None) -> Subject:
    """A byte-level transformer: attention heads and hidden units; the residual width stays."""
    model = kept(cache, "bytes", seed)
    calibration = byte_transformer.windows("train", CALIBRATION_WINDOWS, seed=1000 + seed)
    held_out = byte_transformer.windows("held-out", HELD_OUT_WINDOWS, seed=0)
    before = _outputs(model, held_out[:, :-1])

    def judge(smaller: nn.Module) -> dict[str, float]:
        after = _outputs(smaller, held_out[:, :-1])
        bits = byte_transformer.bits_per_byte(after, held_out).item()
        return {"bits per byte": bits, "KL": _divergence(before, after)}

    return Subject(
        "bytes",
        model,
        ("hidden",),
        True,
        list(calibration[:, :-1].split(16)),
        HALVES,
        judge,
        lambda m: byte_transformer.bits_per_byte(m(calibration[:32, :-1]), calibration[:32]),
    )


def sentence_embedder(seed: int, cache: Path | None) -> Subject:
    """all-MiniLM-L6-v2: heads and hidden units, calibrated on docstrings, judged on other text.

    The model is the same for every seed; the calibration paragraphs differ. An eighth is left out
    (of twelve heads it is none), and other seeds than 0 have the first width only: minutes.
    """
    model, tokenizer = minilm.load()
    paragraphs = corpus.paragraphs("train")
    chosen = [paragraphs[i] for i in _chosen(len(paragraphs), CALIBRATION_PARAGRAPHS, seed)]
    batches = minilm.batches(sorted(chosen, key=len), tokenizer, max_length=LENGTH)  # less padding
    held_out = other_text.paragraphs()
    held_out = random.Random(0).sample(held_out, min(HELD_OUT_PARAGRAPHS, len(held_out)))
    before = minilm.embed(model, held_out, tokenizer, LENGTH)

    def judge(smaller: nn.Module) -> dict[str, float]:
        after = minilm.embed(smaller, held_out, tokenizer, LENGTH)
        return {k.replace("_", " "): v for k, v in minilm.agreement(before, after).items()}

    return Subject(
        "minilm",
        model,
        ("hidden",),
        True,
        [batches[i] for i in _chosen(len(batches), len(batches), seed)],
        (MILD, *HALVES[:2]) if seed == 0 else (MILD,),
        judge,
        None,
    )


SUBJECTS = {"digits": digits, "bytes": byte_language_model, "minilm": sentence_embedder}


def _chosen(count: int, wanted: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:wanted].tolist()


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)


def _divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(original || smaller) over all predictions, in nats."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()
