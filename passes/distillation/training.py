"""The training run: accelerate's, around one loss of a student, a teacher and their features."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ...compiler.capture.batches import named_arguments, split_batch
from ...compiler.capture.examples import copied_call
from ...compiler.capture.finite import FiniteCheck
from ...compiler.digest import content_digest
from ...compiler.errors import NonFiniteError
from .accelerated import accelerator, leave, shared, take, without_autocast
from .average import Average
from .borrowed import LastGood
from .checkpoints import Checkpoints, sample
from .features import Features, feature_loss
from .losses import DistillError
from .masks import Mask
from .modes import in_mode
from .objective import Objective
from .run_state import RunState
from .steps import batches, learning_rate_factor, total_steps
from .teacher import Teacher, fingerprint
from .undo import JUDGED, Start, held_out
from .validation import Watch

if TYPE_CHECKING:
    from ..distill import Distill


@dataclasses.dataclass
class Progress:
    """How far a run is: the loss of each optimizer step so far."""

    losses: list[float] = dataclasses.field(default_factory=list)
    resumed_at: int = 0
    stopped: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.stopped = list(state["losses"]), state["stopped"]
        self.resumed_at = len(self.losses)


class Training:
    """A run of `total` optimizer steps, or the part of one between two shares of them; the student
    is trained in place.

    `planned`: tells checkpoints of one plan from another's. `mask`: what stays zero. `place`: where
    checkpoints go. `span`: where the part begins and ends; one that does not end the run measures
    no metric and keeps no average. `progress`: the run's up to there.
    """

    def __init__(
        self,
        options: Distill,
        teacher: Teacher,
        objective: Objective,
        features: Features,
        planned: str,
        student: nn.Module,
        mask: Mask,
        place: pathlib.Path | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        progress: Progress | None = None,
    ) -> None:
        self.options, self.student, self.teacher = options, student, teacher
        self.objective, self.features, self.planned = objective, features, planned
        self.mask, self.place, self.span = mask, place, span
        self.progress = progress or Progress()
        self.final = span[1] == 1.0
        self.watch = Watch(options.metric if self.final else None, options.patience)
        self.total = self.begin = self.end = 0
        self.finite = FiniteCheck(teacher.model)
        self.read = 0  # batches so far, over all epochs
        self.subject = student  # what is measured: sharded it is a copy
        self.start: Start | None = None
        self.undone = False
        self.untaught: set[str] = set()  # modules whose values lead to no trainable parameter

    def run(
        self,
        device: torch.device,
        optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
        advance: Callable[[int, int, float], None],
    ) -> torch.optim.Optimizer:
        """Train, and give the optimizer; `advance(step, total, loss)` is called after each step."""
        options = self.options
        with accelerator(options, device) as made:
            apart = held_out(options.train_loader) if options.undo else 0
            whole: Any = options.train_loader
            self.judges: list[Any] = list(whole[len(whole) - apart :]) if apart else []
            loader = shared(made, whole[: len(whole) - apart] if apart else whole)
            self.total = total_steps(loader, options.epochs, options.steps, options.accumulate)
            self.begin, self.end = (round(share * self.total) for share in self.span)
            if self.begin == self.end:
                raise DistillError(
                    f"gradual divides {self.total} steps so that one part has none: train for more"
                    " steps, or leave gradual out."
                )
            sharded = made.distributed_type == DistributedType.FSDP
            if sharded and (self.span != (0.0, 1.0) or not self.mask.empty):
                raise DistillError(
                    "what stays zero (gradual, SparsifyWeights) is held in whole tensors, which"
                    " FSDP shards: leave one out."
                )
            if sharded and self.place is not None and (options.ema or options.metric):
                raise DistillError(
                    "a checkpoint under FSDP keeps no average and no best weights, of which each"
                    " process holds a part: leave checkpoint out, or ema and metric."
                )
            # a copy, since the dense graph and the module made from it share their tensors
            subject = copy.deepcopy(self.student) if sharded else self.student
            own_forward = take(subject)
            optimizer = plain = optimizer_of(subject)
            optimizer.zero_grad()  # of the caller's own backward passes
            model, optimizer = made.prepare(subject, optimizer)
            self.subject = model if sharded and not made.is_fsdp2 else subject
            schedule = LambdaLR(
                getattr(optimizer, "optimizer", optimizer),
                lambda step: learning_rate_factor(
                    self.begin + step, self.total, options.warmup, options.schedule
                ),
            )
            self.good = LastGood(subject)
            self.average = Average(options.ema if self.final else None, self.good.live)
            parts = {
                "schedule": schedule,
                "progress": self.progress,
                "watch": self.watch,
                "average": self.average,
                "objective": self.objective,
            }
            state = RunState(made, model, optimizer, parts)
            try:
                with self.features.attached(subject):
                    self._steps(made, model, optimizer, schedule, state, loader, device, advance)
                with self.average.in_place(stay=True):
                    self.watch.restore(self.good.live())
                if not self.good.is_finite():
                    raise self._diverged()
                if self.start is not None:
                    self.undone = self.start.undo(self.good.live())
            finally:
                optimizer.zero_grad()
                made.unwrap_model(model, keep_fp32_wrapper=False)
                leave(subject, own_forward)
            if sharded:
                whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
                self.student.load_state_dict(whole, strict=False)
        return plain

    def _steps(
        self,
        made: Accelerator,
        model: nn.Module,
        optimizer: Any,
        schedule: LambdaLR,
        state: RunState,
        loader: Iterable[Any],
        device: torch.device,
        advance: Callable[[int, int, float], None],
    ) -> None:
        options, progress = self.options, self.progress
        weights = list(model.parameters())  # as accelerate compares them where they are sharded
        feed = batches(loader, self.total * options.accumulate, options.seed)
        first = next(feed)
        feed = itertools.chain([first], feed)
        identity = {} if self.place is None else self._identity(made.num_processes, first)
        began = {} if self.place is None else sample(self.student)
        checkpoints = Checkpoints(self._directory(), options.checkpoint_every, identity, began)
        every = options.evaluate_every or max(1, self.total // 10)
        newest = checkpoints.newest()
        if options.undo and self.final and self.watch.metric is None:
            judge = partial(self._judge, made, self.judges or [first], device)
            self.start = Start(judge, self.good.live())
        done = (self.begin if newest is None else newest) * options.accumulate
        for _ in itertools.islice(feed, done):
            pass  # the same batches in the same order, up to where the run had come
        self.read = done
        if newest is not None:
            checkpoints.load(made, state, newest)
            self.mask.hold(self._along(newest))
            self.good.keep()
        else:
            self._look(self.begin)
        micro: list[float] = []
        while len(progress.losses) < self.end and not progress.stopped:
            with made.accumulate(model):
                loss = self._loss(model, next(feed), device, len(progress.losses))
                made.backward(loss)
                mean = made.reduce(loss.detach(), "mean")
                assert isinstance(mean, Tensor)
                micro.append(mean.item())
                if made.sync_gradients:
                    norm = made.clip_grad_norm_(weights, options.clip or math.inf)
                    # a scaler of float16 skips such a step by itself
                    seen = [*micro]
                    if norm is not None and options.precision != "fp16":
                        seen.append(norm.item())
                    if not all(map(math.isfinite, seen)):
                        raise self._diverged()
                    self.good.keep()
                optimizer.step()
                if made.sync_gradients:
                    self.mask.hold(self._along(len(progress.losses) + 1))
                optimizer.zero_grad()
            if not made.sync_gradients:
                continue
            schedule.step()
            self.average.update()
            progress.losses.append(sum(micro) / len(micro))
            micro = []
            step = len(progress.losses)
            advance(step, self.total, progress.losses[-1])
            last = step == self.end
            if self.watch.metric is not None and (last or step % every == 0):
                with self.average.in_place():
                    progress.stopped = not self._look(step)
            checkpoints.save(made, state, step, last or progress.stopped)

    def _judge(self, made: Accelerator, judges: Sequence[Any], device: torch.device) -> float:
        """The mean loss of the outputs on some batches, over all processes: of the model in eval
        mode and without autocast, as it will be."""
        objective = copy.copy(self.objective)  # it settles on its outputs in training
        total = torch.zeros((), dtype=torch.float64, device=device)
        with (
            without_autocast(self.subject),
            self.features.paused(),
            self.teacher.features.paused(),
            in_mode(self.subject, training=False),
            torch.no_grad(),
        ):
            for batch in judges[:JUDGED]:
                args, kwargs, labels = split_batch(batch, device, self.teacher.model)
                answer, _ = self.teacher(args, kwargs)
                arguments = named_arguments(self.teacher.model, args, kwargs)
                if labels is not None:
                    arguments["labels"] = labels
                loss = objective(self.subject(*args, **kwargs), answer, labels, arguments)
                total += loss.detach().double()
        mean = made.reduce(total / len(judges[:JUDGED]), "mean")
        assert isinstance(mean, Tensor)
        return mean.item()

    def _look(self, step: int) -> bool:
        """Measure, without autocast, which the model will not have; gives whether to go on. The
        metric may run either model."""
        with (
            without_autocast(self.subject),
            self.features.paused(),
            self.teacher.features.paused(),
        ):
            return self.watch.look(self.subject, step, self.good.live())

    def _along(self, step: int) -> float:
        """The share of this part's steps that are done."""
        return (step - self.begin) / (self.end - self.begin)

    def _directory(self) -> pathlib.Path | None:
        """Where checkpoints go: those of a part before the last one stay beside its own."""
        return self.place if self.place is None or self.final else self.place / "full-size"

    def _loss(self, model: nn.Module, batch: Any, device: torch.device, step: int) -> Tensor:
        args, kwargs, labels = split_batch(batch, device, self.teacher.model)
        self.read += 1
        try:
            self.finite.batch((args, kwargs), f"training batch {self.read}")
        except NonFiniteError:
            self.good.restore()
            raise
        answer, wanted = self.teacher(args, kwargs)
        arguments = named_arguments(self.teacher.model, args, kwargs)
        if labels is not None:
            arguments["labels"] = labels  # where there is no mask, they say which positions count
        self.features.take()
        own, named = copied_call(args, kwargs)
        loss = self.objective(model(*own, **named), answer, labels, arguments)
        found = self.features.take()
        for path, values in found.items():
            if not any(value.requires_grad for value in values):
                self.untaught.add(path)
        weight = self._feature_weight(step)
        if weight > 0:
            inner = feature_loss(found, wanted, arguments)
            loss = loss if inner is None else loss + weight * inner
        if not loss.requires_grad:
            raise DistillError(
                f"No trainable parameter reaches the output {', '.join(self.objective.outputs)}:"
                " unfreeze some, or name another output with output=."
            )
        return loss

    def _feature_weight(self, step: int) -> float:
        """Falls linearly to 0 at the share `features_until` of the run."""
        options = self.options
        if options.features == 0:
            return 0.0
        return options.features * max(0.0, 1 - step / max(1.0, options.features_until * self.total))

    def _diverged(self) -> DistillError:
        """The run left the numbers: the last good weights are put back."""
        self.good.restore()
        step = len(self.progress.losses) + 1
        error = DistillError(
            f"The loss or its gradient is not finite at step {step} and the last good weights were"
            " put back (in this error's `model`): lower learning_rate, or look for bad values in"
            " that batch."
        )
        error.model = self.student
        return error

    def _identity(self, processes: int, first: Any) -> dict[str, Any]:
        """What a run must have in common with that of a checkpoint; `first`: its first batch. Of a
        stream, whose batches need not come again, the data is not part of it."""
        loader = self.options.train_loader
        again = isinstance(loader, (Sequence, DataLoader))
        data = broadcast_object_list([content_digest(first) if again else ""])[0]
        ignored = ("progress", "checkpoint", "checkpoint_every", "device", "teacher_cache")
        return {
            "options": {k: v for k, v in self.options.options().items() if k not in ignored},
            "steps": self.total,
            "processes": processes,
            "plan": self.planned,
            "original": fingerprint(self.teacher.model),
            "data": data,
            "shapes": {n: list(p.shape) for n, p in self.student.named_parameters()},
        }
