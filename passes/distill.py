"""Distill: recovery training of the smaller model, with the original model as its teacher."""

from __future__ import annotations

import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ..compiler.capture.batches import Device
from ..compiler.console import plain_console
from ..compiler.digest import content_digest
from ..compiler.pass_class import Pass, PassResult
from .distillation.borrowed import device_of, on_device, refuse_shared, seeded, teacher_on
from .distillation.features import Features, matched_paths
from .distillation.losses import DistillError, EmbeddingLoss
from .distillation.masks import FixedMask, GrowingMask
from .distillation.modes import in_mode, in_training
from .distillation.objective import Kind, Objective
from .distillation.optimizer import adamw
from .distillation.options import Precision, Schedule, refuse_options
from .distillation.outputs import Which
from .distillation.steps import refuse_unbatched, total_steps
from .distillation.teacher import Teacher
from .distillation.training import Training

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation

# By what transformers calls the loss of a class: whether it moves labels by one itself.
_SHIFTED = {"ForCausalLM": True, "ForMaskedLM": False}

CURVE_POINTS = 100
"""At most this many points of the loss curve are reported."""


@dataclass
class Distill(Pass):
    """Train the smaller model to answer as the original does; nothing else of the model changes.

    The original (in eval mode, without gradients) answers each batch, and the smaller model is
    trained by AdamW, with linear warm-up and cosine decay to zero, on
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
        features: the weight of the values inside: layers that read what was cut, and the norms
            behind them, are to return what they do in the original (normalised squared error). It
            falls linearly to 0 at the share `features_until` of the steps. 0: outputs only.
        metric: a callable on the model, higher is better: measured before the run, every
            `evaluate_every` steps (by default ten times in all) and at the end; the best weights
            are kept. With `patience`, the run stops after so many measurements without a better
            one.
        dropout: train with the smaller model's dropout, and whatever else its class does in train
            mode only. By default only running statistics are: the teacher answers without noise,
            and a model that has just lost capacity has none to spare for it.
        ema: the decay of an average of the weights, which is measured and kept instead of them.
        accumulate: batches for one optimizer step.
        precision: "no", "bf16" or "fp16" (autocast); the weights keep their dtype.
        schedule: "cosine" or "linear" decay.
        checkpoint: a directory in which the state is saved every `checkpoint_every` steps and at
            the end; a run that was killed goes on from there to the same result. Later rounds
            have a directory inside.
        teacher_cache: a directory in which the teacher's answers are kept, by the content of the
            batch, for later epochs and runs.
        gradual: the share of the steps, from 0 to 1 without these, in which a copy of the
            *full-size* model is trained while a mask grows over what the plan removes, lowest
            scores first, by the cubic schedule of Zhu and Gupta (2017, equation 1). Its weights
            are then cut into the dense model, which trains for the rest; a repair before it is
            lost. For norm-coupled dimensions the masked model is not yet the dense one, which the
            rest makes up for. `metric` and `ema` begin at the cut. None: only the dense model is
            trained, behind Reconstruct as well where cuts are deep or data is short: a step costs
            less, and it needs no second model in memory.
        undo: give back the weights that training began with where the loss of the outputs is
            higher at the end, and say so (with `gradual`: those of the cut). It is taken in eval
            mode, on the last twentieth of a list of 20 batches or more (4 at most), which is then
            not trained on; of other data on the first batch. With a `metric` that decides instead.

    Under `torchrun` or `accelerate launch` each process compiles alike, and the batches are shared
    out: N processes make steps of N batches.

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
    features: float = 1.0
    features_until: float = 1.0
    metric: Callable[[nn.Module], float] | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    dropout: bool = False
    ema: float | None = None
    accumulate: int = 1
    precision: Precision = "no"
    schedule: Schedule = "cosine"
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 100
    teacher_cache: str | os.PathLike[str] | None = None
    gradual: float | None = None
    undo: bool = True

    name: ClassVar[str] = "distill"
    provides: ClassVar[tuple[str, ...]] = ("recovered",)
    needs: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        refuse_options(self)
        refuse_unbatched(self.train_loader)
        total_steps(self.train_loader, self.epochs, self.steps)  # now, and not after the cut

    def run(self, state: Compilation) -> PassResult:
        place = None if self.checkpoint is None else pathlib.Path(self.checkpoint)
        if place is not None and state.round > 1:
            place = place / f"round-{state.round}"
        paths = matched_paths(state) if self.features else []
        grown = None
        if self.gradual is not None:
            grown = GrowingMask(state, torch.device(self.device or device_of(state.model)))
            if "repaired" in state.facts:
                state.notes.append(
                    "the repair before Distill was lost: with gradual the weights come from the"
                    " full-size model; leave the repair out, or gradual"
                )
        planned = content_digest(state.plan.kept, [repr(drop) for drop in state.plan.dropped])
        result = self._distil(
            state.model, state.teacher, paths, place, _fixed(state), grown, planned
        )
        if result.details.get("undone"):
            state.notes.append(
                "the training ended worse than it began and was undone: lower learning_rate, train"
                " for longer, or give more varied data"
            )
        return result

    def train(self, student: nn.Module, teacher: nn.Module) -> PassResult:
        """Train any smaller model, in place, as `run` trains that of a compilation; values inside
        are not matched. Raises what `run` raises, and DistillError for `gradual`."""
        if self.gradual is not None:
            raise DistillError("gradual needs a plan to mask by: use Distill in a pipeline.")
        place = None if self.checkpoint is None else pathlib.Path(self.checkpoint)
        return self._distil(student, teacher, [], place, FixedMask())

    def _distil(
        self,
        student: nn.Module,
        original: nn.Module,
        paths: list[str],
        place: pathlib.Path | None,
        fixed: FixedMask,
        grown: GrowingMask | None = None,
        planned: str = "",
    ) -> PassResult:
        """`paths`: modules whose values are matched. `place`: where checkpoints go. `fixed`: what
        stays zero. `grown`: the full-size model that is trained first. `planned`: by which
        checkpoints of another plan are told."""
        started = time.perf_counter()
        refuse_shared(student, original, self.dropout)
        asked = teacher_on(original, self.device)
        inside, outside = Features(paths), Features(paths)
        teacher = Teacher(asked, outside, self.teacher_cache)
        objective = Objective(
            self.objective,
            self.temperature,
            self.alpha,
            self.embedding_loss,
            self.output,
            _SHIFTED.get(getattr(original, "loss_type", None) or ""),
        )
        parts = self, teacher, objective, inside, planned
        with (
            in_mode(asked, training=False),
            outside.attached(asked),
            seeded(self.seed),
            torch.enable_grad(),
            self._bar() as advance,
        ):
            if grown is None:
                training = Training(*parts, student, fixed, place)
                self._train(training, advance)
            else:
                share = self.gradual or 0.0
                begun = Training(*parts, grown.model, grown, place, (0.0, share))
                moments = self._train(begun, advance)
                grown.cut()
                training = Training(*parts, student, fixed, place, (share, 1.0), begun.progress)
                self._train(training, advance, partial(grown.carry, moments))
        return self._result(training, paths, time.perf_counter() - started)

    def _train(
        self,
        training: Training,
        advance: Callable[[int, int, float], None],
        prepare: Callable[[torch.optim.Optimizer], None] | None = None,
    ) -> torch.optim.Optimizer:
        """Run one part, and give its optimizer; `prepare` is handed that before."""
        student = training.student

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            made = adamw(model, self.learning_rate, self.weight_decay)
            if prepare is not None:
                prepare(made)
            return made

        learning = in_training(student, dropout=self.dropout)
        with on_device(student, self.device) as device, learning:
            return training.run(device, optimizer, advance)

    def _result(self, training: Training, paths: list[str], seconds: float) -> PassResult:
        losses, objective, watch = training.progress.losses, training.objective, training.watch
        total = len(losses)
        own = losses[training.begin :]
        window = max(1, len(own) // 10)
        before, after = _mean(own[:window]), _mean(own[-window:])
        stride = math.ceil(total / CURVE_POINTS)
        summary = f"{objective.kind} loss {before:.4g} -> {after:.4g} in {len(own)} steps"
        details: dict[str, Any] = {
            "objective": objective.kind,
            "outputs": list(objective.outputs),
            "features": paths,
            "labels": objective.labels,
            "steps": total,
            "loss_before": before,
            "loss_after": after,
            "loss_curve": [[i, losses[i]] for i in range(0, total, stride)],
            "seconds": seconds,
        }
        if training.begin:
            details["steps of the growing mask"] = training.begin
            summary += f" after {training.begin} with a growing mask"
        lost = [path for path in paths if path in training.untaught]
        if lost:
            details["features"] = [path for path in paths if path not in training.untaught]
            details["features without a gradient"] = lost
        if objective.labels == "unused":
            summary += "; the labels were not used"
        if watch.values:
            details["metric"] = [list(point) for point in watch.values]
            if not watch.kept:
                summary += "; the metric never was a number, and the last weights were kept"
            else:
                summary += f"; metric {watch.values[0][1]:.4g} -> {watch.best:.4g}"
                if watch.best_step < total:
                    summary += f" at step {watch.best_step}, which was kept"
        if training.progress.stopped:
            summary += f"; stopped early, {training.total} were planned"
        if training.start is not None:
            details["loss of the outputs"] = [training.start.before, training.start.after]
            details["judged by"] = "held-out batches" if training.judges else "the first batch"
        if training.undone and training.start is not None:
            details["undone"] = True
            summary += (
                f"; undone: the loss rose from {training.start.before:.4g} to"
                f" {training.start.after:.4g} on {details['judged by']}"
            )
        if training.progress.resumed_at:
            details["resumed at"] = training.progress.resumed_at
            summary += f"; resumed at step {training.progress.resumed_at}"
        return PassResult(not training.undone, summary, details)

    @contextmanager
    def _bar(self) -> Iterator[Callable[[int, int, float], None]]:
        console = plain_console(stderr=True)
        with Progress(
            TextColumn("distill"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self.progress and console.is_terminal),
        ) as bar:
            task = bar.add_task("distill", total=None, loss=math.nan)
            yield lambda step, total, loss: bar.update(task, completed=step, total=total, loss=loss)


def _fixed(state: Compilation) -> FixedMask:
    """The weights that were set to zero stay zero."""
    if not state.masks or state.dense is None:
        return FixedMask()
    tensors = state.dense.program.tensors
    return FixedMask([(tensors[name], mask) for name, mask in state.masks.items()])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
