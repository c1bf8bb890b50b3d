"""Distill: recovery training of the smaller model, with the original model as its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..compiler.capture.batches import Device, named_arguments, split_batch, to_device
from ..compiler.passmanager import Pass, PassResult
from .distillation.borrowed import (
    LastGood,
    device_of,
    in_mode,
    on_device,
    refuse_shared,
    seeded,
    teacher_on,
)
from .distillation.losses import DistillError, EmbeddingLoss
from .distillation.objective import Kind, Objective
from .distillation.outputs import Which
from .distillation.steps import batches, refuse_unbatched, total_steps, warmup_cosine

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation

CURVE_POINTS = 100
"""At most this many points of the loss curve are reported."""


@dataclass
class Distill(Pass):
    """Train the smaller model to answer as the original does; nothing else of the model changes.

    The original (in eval mode, without gradients) answers each batch, and the smaller model is
    trained in train mode by AdamW, with linear warm-up and cosine decay to zero, on
    alpha T² KL + (1 - alpha) CE (Hinton et al. 2015) or on the distance of embeddings; labels are
    optional. Frozen parameters stay frozen. The same seed, batches and weights give the same
    result on a CPU. One copy of the trained tensors is kept, as the last good weights.

    Args:
        train_loader: batches as `compiler/capture/batches.py` describes them; read once an epoch.
        epochs: passes over the loader.
        steps: optimizer steps, instead of epochs; needed where the loader has no length.
        temperature: T, for logits. 4 suits many classes; 1 to 2 is usual for language models.
        alpha: the weight of the teacher's answers against the labels, 0 to 1.
        learning_rate: the peak of the schedule. 1e-4 is the upper end of what is used for
            pre-trained transformers (2e-5 to 1e-4); small networks take 1e-3 to 3e-3.
        weight_decay: AdamW's, on parameters of two axes and more.
        warmup: the share of the steps in which the rate rises, 0 to 1.
        objective: "logits", "embedding", or "auto" (see `Objective`).
        embedding_loss: "mse" (normalised), "cosine" or "mse+cosine".
        seed: of torch's random numbers (dropout, shuffling); the caller's state of them is kept.
        clip: the largest norm of the gradient; None does not clip.
        progress: show a bar with the loss and the time left, on terminals.
        device: where to train, by default where the smaller model is; it is moved back afterwards.
        output: which output to match, by key, index or dotted path, or several; by default logits,
            else an embedding, else the first float tensor.

    Raises:
        DistillError: options out of range; a loader that is empty, or ends early; a model without
            trainable parameters; outputs or labels that do not fit; a loss or gradient that is not
            finite (the weights then are the last ones whose loss was).
        BatchError: a batch of an unknown form.
    """

    train_loader: Iterable[Any]
    epochs: int = 3
    steps: int | None = None
    temperature: float = 4.0
    alpha: float = 0.5
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    objective: Kind = "auto"
    embedding_loss: EmbeddingLoss = "mse+cosine"
    seed: int = 0
    clip: float | None = 1.0
    progress: bool = True
    device: Device = None
    output: Which = None

    name: ClassVar[str] = "distill"
    provides: ClassVar[tuple[str, ...]] = ("recovered",)
    needs: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        accepted = {
            "epochs": ("at least 1", self.epochs >= 1),
            "steps": ("at least 1, or None", self.steps is None or self.steps >= 1),
            "temperature": ("above 0", self.temperature > 0),
            "alpha": ("between 0 and 1", 0 <= self.alpha <= 1),
            "learning_rate": ("above 0", self.learning_rate > 0),
            "weight_decay": ("at least 0", self.weight_decay >= 0),
            "warmup": ("at least 0 and below 1", 0 <= self.warmup < 1),
            "clip": ("above 0, or None", self.clip is None or self.clip > 0),
            "objective": (" or ".join(get_args(Kind)), self.objective in get_args(Kind)),
            "embedding_loss": (
                " or ".join(get_args(EmbeddingLoss)),
                self.embedding_loss in get_args(EmbeddingLoss),
            ),
        }
        for option, (allowed, holds) in accepted.items():
            if not holds:
                raise DistillError(f"{option}={getattr(self, option)!r} must be {allowed}.")
        refuse_unbatched(self.train_loader)

    def run(self, state: Compilation) -> PassResult:
        teacher, student = state.graph.source, state.model
        started = time.perf_counter()
        objective = Objective(
            self.objective, self.temperature, self.alpha, self.embedding_loss, self.output
        )
        total = total_steps(self.train_loader, self.epochs, self.steps)
        losses = self._train(student, teacher, objective, total)
        window = max(1, total // 10)
        before, after = _mean(losses[:window]), _mean(losses[-window:])
        stride = math.ceil(total / CURVE_POINTS)
        return PassResult(
            changed=True,
            summary=f"{objective.kind} loss {before:.4g} -> {after:.4g} in {total} steps",
            details={
                "objective": objective.kind,
                "outputs": list(objective.outputs),
                "labels": objective.labels,
                "steps": total,
                "loss_before": before,
                "loss_after": after,
                "loss_curve": [[i, losses[i]] for i in range(0, total, stride)],
                "seconds": time.perf_counter() - started,
            },
        )

    def _train(
        self, student: nn.Module, original: nn.Module, objective: Objective, total: int
    ) -> list[float]:
        """The loss of each step; the student is trained in place."""
        refuse_shared(student, original)
        teacher = teacher_on(original, self.device)
        asked = device_of(teacher)
        losses: list[float] = []
        with (
            on_device(student, self.device) as device,
            in_mode(student, training=True),
            in_mode(teacher, training=False),
            seeded(self.seed),
            torch.enable_grad(),
            self._bar(total) as advance,
        ):
            optimizer = self._optimizer(student)
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, self.warmup))
            good = LastGood(student)
            optimizer.zero_grad()
            try:
                for batch in batches(self.train_loader, total):
                    args, kwargs, labels = split_batch(batch, device)
                    with torch.no_grad():
                        answer = teacher(*to_device(args, asked), **to_device(kwargs, asked))
                    arguments = named_arguments(original, args, kwargs)
                    loss = objective(student(*args, **kwargs), answer, labels, arguments)
                    if not loss.requires_grad:
                        raise DistillError(
                            f"No trainable parameter reaches the output"
                            f" {', '.join(objective.outputs)}: unfreeze some, or name another"
                            " output with output=."
                        )
                    loss.backward()
                    norm = nn.utils.clip_grad_norm_(weights, self.clip or math.inf)
                    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                        raise _diverged(good, len(losses))
                    good.keep()
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    losses.append(loss.item())
                    advance(losses[-1])
                if not good.is_finite():
                    raise _diverged(good, len(losses))
            finally:
                optimizer.zero_grad()
        return losses

    def _optimizer(self, student: nn.Module) -> torch.optim.AdamW:
        trainable = [p for p in student.parameters() if p.requires_grad]
        if not trainable:
            raise DistillError(
                "The smaller model has no trainable parameter: set requires_grad on the ones to"
                " train, or leave Distill out."
            )
        if any(p.dtype == torch.float16 for p in trainable):
            raise DistillError(
                "AdamW does not train float16 parameters, its epsilon rounds to zero there:"
                " compile the model in float32 or bfloat16 and cast the result."
            )
        # Biases and norm scales are not decayed: they do not overfit, and norms need their scale.
        matrices = [p for p in trainable if p.ndim >= 2]
        vectors = [p for p in trainable if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate)

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[float], None]]:
        console = Console(stderr=True)
        with Progress(
            TextColumn("distill"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self.progress and console.is_terminal),
        ) as bar:
            task = bar.add_task("distill", total=total, loss=math.nan)
            yield lambda loss: bar.update(task, advance=1, loss=loss)


def _diverged(good: LastGood, step: int) -> DistillError:
    good.restore()
    return DistillError(
        f"The loss or its gradient is not finite at step {step + 1} and the last good weights were"
        " put back: lower learning_rate, or look for bad values in that batch."
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
