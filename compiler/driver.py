"""compile(): the whole way from a model and a target to a smaller, proven, measured model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from .capture.batches import held_batches, split_batch, to_device, unlabelled
from .capture.capture import capture
from .capture.copies import computed
from .capture.finite import FiniteCheck
from .capture.inputs import positional
from .capture.models import plain_model
from .capture.untouched import untouched
from .cause import cause
from .digest import content_digest
from .emit.class_needs import check_mode
from .errors import PlanError, QualityError
from .inference.graph import Graph
from .measure.model_timing import compare_modules
from .option_types import checked
from .pass_class import Pass
from .passmanager import Callback, PassManager, check_order
from .preconditions import refuse_arguments
from .processes import on_first
from .quality import score
from .recipe import build_pipeline, read_recipe
from .result import Result
from .resume import resumable
from .rounds import round_targets
from .target import Target

ATTEMPTS = 3  # at a steady timing
SPEED_SLACK = 0.95  # timings are noisy; a speed below this share of the target is reported


@checked("model", "args", "target", "device")
def compile(
    model: nn.Module,
    args: Sequence[Any] | Tensor | None = None,
    *,
    target: Target,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    outputs: Sequence[str | int] | str | int | None = None,
    untie_tables: bool = False,
    mode: str = "auto",
    calibration: Iterable[Any] | None = None,
    train: Iterable[Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    floor: float = 0.97,
    rounds: int = 1,
    checkpoint: str | pathlib.Path | None = None,
    device: str | torch.device | None = None,
    recipe: str | pathlib.Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    keep_class: str = "auto",
    measure: bool = True,
    strict: bool = False,
    callback: Callback | None = None,
) -> Result:
    """Compress `model` to `target`; the model itself is never changed, the result has its mode.

    `args`, `kwargs`, `dynamic_shapes`, `outputs`, `untie_tables`, `mode`: as `capture`.
    `calibration`: unlabelled batches, by which entries are chosen and the cut layers repaired (left
    out without) and on which the result is also proven; by default the first ones of `train`, none
    with []. `train`: batches to recover on, by distillation from the original (left out without).
    `evaluate`: a callable on a model, higher is better; below `floor` times the original's value
    (1 - `floor` of its size below it) QualityError is raised.
    `rounds`: reach the target in so many steps of equal factors; each cuts, repairs and trains what
    the one before left, by scores of that, towards the original. What drops branches by a ratio of
    its own takes part in the first.
    `checkpoint`: a directory by which the same call goes on where it was killed: the plan of each
    round is kept there, and the state of training. Under `torchrun` every process makes the call;
    what is measured is measured by the first.
    `device`: compile on this device (a copy of the model is moved there). `recipe`: a TOML list of
    passes; `options`: per pass name, options that win over the recipe's. `keep_class`: "auto" holds
    the plan to what the user's class needs (equal widths, tables left whole) where the predicted
    error stays within 1.1 times the free plan's; "always" at any cost; "never": the graph is as
    good. `measure`: time original and result side by side. `strict`: a check that proves nothing
    (nothing finite to compare, or outputs that no mistake would move) raises VerificationError
    instead of heading the report.

    Raises ArgumentError, CaptureError, TargetError, PlanError, VerificationError, QualityError.
    """
    refuse_arguments(target, floor, rounds, checkpoint, device)
    entries = read_recipe(recipe)
    check_mode(keep_class)
    model, call = plain_model(model), positional(args)
    named: dict[str, Any] = dict(kwargs or {})
    subject = model
    if device is not None:
        call, named = to_device(call, device), to_device(named, device)
        tensors = (*model.parameters(), *model.buffers())
        if any(t.device != torch.device(device) for t in tensors):
            subject = copy.deepcopy(model, dict(computed(model))).to(device)
    held = _finite_data(subject, (call, named), calibration, train, device) or None
    supplies = {"target": target, "train": train, "calibration": held, "device": device}
    supplies["checkpoint"] = checkpoint
    supplies["keep_class"] = keep_class
    _refuse_pipeline(build_pipeline(entries, supplies, options)[0], rounds)
    training = {m: m.training for m in subject.modules()}
    kept = contextlib.ExitStack()
    kept.enter_context(untouched(model, shared=False))
    subject.eval()
    try:
        before = score(evaluate, subject, original=True) if evaluate is not None else None
        graph = capture(
            subject,
            call,
            kwargs=named,
            dynamic_shapes=dynamic_shapes,
            outputs=outputs,
            untie_tables=untie_tables,
            mode=mode,
        )
        result = None
        shapes = [
            [list(t.shape), str(t.dtype)]
            for t in pytree.tree_leaves((call, named))
            if isinstance(t, Tensor)
        ]
        identity = {
            "target": dataclasses.asdict(target),
            "rounds": rounds,
            "capture": [outputs, untie_tables, mode, shapes],
            "calibration": content_digest(held) if checkpoint is not None else "",
        }
        notes: list[str] = []
        goals = _targets(target, rounds, graph)
        for step in goals:
            passes, notes = build_pipeline(entries, {**supplies, "target": step}, options)
            if rounds > 1:
                passes = _of_round(passes, result is None, step is goals[-1])
            if checkpoint is not None:
                number = 1 if result is None else result.state.round + 1
                passes = resumable(passes, pathlib.Path(checkpoint), number, subject, identity)
            result = PassManager(passes, callback).run(graph, held, start=result, strict=strict)
        assert result is not None
        result.report.target = str(target)
        result.report.notes[:0] = notes
        try:
            if evaluate is not None and before is not None:
                _judge(result, evaluate, before, floor)
            if measure:
                _measure(result, target)
        except QualityError:
            raise
        except BaseException as error:  # of the user's function, or an interruption
            vars(error)["result"] = result
            raise
        modes = {name: training[m] for name, m in subject.named_modules()}
        result.model.train(modes[""])  # what a class keeps of the mode by itself
        for name, m in result.model.named_modules():
            m.training = modes.get(result.plan.thinning.original(name), modes[""])
        return result
    finally:
        subject.train(training[subject])
        for m, was_training in training.items():
            m.training = was_training
        kept.close()


def _finite_data(
    model: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    calibration: Iterable[Any] | None,
    train: Iterable[Any] | None,
    device: str | torch.device | None,
) -> list[Any]:
    """The calibration batches on the device, after they, the weights, the example inputs and a list
    of training batches were looked at; a loader's are, as they are read. Raises NonFiniteError."""
    finite, (_, kwargs) = FiniteCheck(model), call
    finite.weights(call)
    finite.batch(call, "the example")
    what = "calibration batch"
    if calibration is None and "labels" not in kwargs:  # a loss in the graph reads them
        calibration, what = unlabelled(train, model, kwargs), "training batch"
    batches = [to_device(batch, device) for batch in held_batches(calibration)]
    held = list(finite.batches(batches, what))
    if isinstance(train, (list, tuple)):
        for i, batch in enumerate(train, 1):
            args, named, _ = split_batch(batch, device)
            finite.batch((args, named), f"training batch {i}")
    return held


def _refuse_pipeline(passes: list[Pass], rounds: int) -> None:
    """Raise PlanError or PassOrderError for passes that do not fit each other, or rounds."""
    check_order(_of_round(passes, True, True) if rounds > 1 else passes)


def _targets(target: Target, rounds: int, graph: Graph) -> list[Target]:
    """Those of the rounds; for a latency the original is timed."""
    if rounds == 1 or target.kind != "latency_ms":
        return round_targets(target, rounds)
    program, source = graph.program, graph.source

    def original_ms() -> float:
        return compare_modules(
            source,
            source,
            program.args,
            program.kwargs,
            runtime=target.runtime,
            device=program.device(),
            batch=target.batch,
        ).before.median_ms

    return round_targets(target, rounds, on_first(original_ms, program.device()))


def _of_round(passes: list[Pass], first: bool, last: bool) -> list[Pass]:
    """The passes of one of several rounds: what drops branches takes part in the first, what sets
    single weights to zero in the last. Raises PlanError for what rounds cannot do."""
    if not any(hasattr(step, "target") for step in passes):
        raise PlanError("rounds go towards the target, and no pass of the recipe takes it.")
    if any(getattr(step, "gradual", None) is not None for step in passes):
        raise PlanError(
            "gradual masks the full-size model, and rounds go on from a smaller one: leave one out."
        )
    return [
        step
        for step in passes
        if (first or "dropped" not in step.provides) and (last or "sparse" not in step.provides)
    ]


def _measure(result: Result, target: Target) -> None:
    """Time the result in eager torch and in the target's runtime; say so when it fell short, or
    could not be timed: it is there all the same."""
    try:
        result.measure_all(("torch",))
    except Exception as error:
        result.report.notes.append(f"not timed in torch: {cause(error)}")
    if not target.measured:
        _measure_beside(result, target)
        return
    try:
        comparison = result.measure(target.runtime, target.batch, attempts=ATTEMPTS)
    except Exception as error:
        result.report.notes.append(f"not timed in {target.runtime}: {cause(error)}")
        return
    if not comparison.steady:
        result.report.notes.append(
            f"the machine was not steady: in {comparison.attempts} attempts the original against "
            f"itself gave {comparison.control:.2f} at best; measure again when nothing else runs"
        )
    asked, found = target.value, comparison.ratio
    if target.kind == "latency_ms":
        asked, found = 1 / target.value, 1 / comparison.after.median_ms
    if result.report.aim is not None:
        measured = found if target.kind == "speedup" else 1 / found
        result.report.aim = dataclasses.replace(result.report.aim, measured=measured)
    if found < asked * SPEED_SLACK:
        result.report.notes.append(
            f"asked for {target}, measured {comparison.ratio:.2f}x "
            f"({comparison.after.median_ms:.2f} ms) in this run"
        )


def _measure_beside(result: Result, target: Target) -> None:
    """Time the result in a runtime or at a batch that its aim does not depend on, if it runs so."""
    known = {(c.runtime, c.batch) for c in result.report.latency}
    if target.runtime == "torch" and (target.batch is None or ("torch", target.batch) in known):
        return
    try:
        result.measure(target.runtime, target.batch)
    except Exception as error:  # whatever a runtime raises: the result is reached without it
        where = f"{target.runtime}" + (f" at batch {target.batch}" if target.batch else "")
        result.report.notes.append(f"not timed in {where}: {cause(error)}")


def _judge(
    result: Result,
    evaluate: Callable[[nn.Module], float],
    before: float,
    floor: float,
) -> None:
    """Raises QualityError where `after` is below the floor, or no number."""
    after = score(evaluate, result.model, original=False)
    name = getattr(evaluate, "name", "evaluate")
    result.report.quality[name] = before, after
    samples = getattr(evaluate, "samples", None)
    if samples is not None:
        result.report.notes.append(f"{name} is of {samples:,} samples")
    if not after >= before - (1 - floor) * abs(before):  # also for scores below 0, and for nan
        raise QualityError(
            f"evaluate fell from {before:.4f} to {after:.4f}, below the floor of {floor:.0%}; "
            "nothing was written. Ask for a milder target, give training data, or lower floor."
        )
