"""`prunec compile`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from torch import nn

from ..artifact.fresh_process import try_in_fresh_process
from ..artifact.place import SWEEP, OutputPlace, free_name, refuse_file
from ..artifact.rescue import told
from ..capture.batches import to_device, unlabelled
from ..capture.capture import capture
from ..driver import compile
from ..durable import write_whole
from ..errors import InterruptedCompile, PlanError, PrunecError, SourceError
from ..onnx_files.dtypes import refuse_dtypes
from ..pass_class import Pass, PassResult
from ..passmanager import PassManager
from ..preconditions import refuse_unwritable
from ..processes import is_first
from ..recipe import build_pipeline, read_recipe
from ..result import Result
from ..sources.data import load_data
from ..sources.evaluation import metric_for
from ..sources.model import Source, import_factory
from ..sources.rows import TRAIN
from ..sources.tasks import named_task
from ..sweep import sweep
from ..target import Target
from .open_model import open_model
from .refusals import (
    Emitted,
    column_roles,
    emitted_files,
    least_bytes,
    pass_options,
    refuse_options,
)

SEED = 0  # of the choice and order of samples


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """The options of `prunec compile`, as the command line gives them."""

    model: str
    target: str | None
    sweep: str | None
    uniform: bool
    depth: float | None
    rounds: int
    checkpoint: pathlib.Path | None
    best_effort: bool
    data: str | None
    split: str
    task: str | None
    columns: list[str] | None
    max_length: int | None
    pad_to: int | None
    eval_data: str | None
    eval_split: str | None
    out: pathlib.Path
    recipe: pathlib.Path | None
    emit: str
    device: str | None
    runtime: str
    batch: int | None
    inputs: list[str] | None
    outputs: list[str] | None
    untie_tables: bool
    keep_class: str
    exclude: list[str] | None
    round_to: int | None
    steps: int | None
    learning_rate: float | None
    batch_size: int
    max_samples: int | None
    evaluate: str | None
    floor: float
    dry_run: bool
    measure: bool
    strict: bool = False
    try_load: bool = True


def compile_command(options: CompileOptions, console: Console) -> None:
    """Resolve, compile, write; print the tables. Raises PrunecError: then nothing was written, or
    the error's `kept` says what was."""
    if options.sweep is not None:
        _sweep(options, console)
        return
    target = Target.parse(options.target or "", options.runtime, options.batch)
    emitted = emitted_files(options.emit)
    refuse_options(options, target)
    if options.dry_run:
        source = _opened(options)
        _dry_run(options, source, target, console)
        return
    if not is_first():  # of several processes that compile alike
        _compiled(options, target, emitted, console)
        return
    with OutputPlace(options.out) as place:
        result, processor = _compiled(options, target, emitted, console, place)
        runtimes = ("onnxruntime",) if emitted.onnxruntime and options.measure else ()
        try:
            result.save(
                place,
                onnx=emitted.onnx,
                int8=emitted.int8,
                measure=runtimes,
                processor=processor,
                try_load=options.try_load,
            )
        except KeyboardInterrupt as error:
            _say_kept(error)
            raise
        except PrunecError as error:
            if error.kept == place.given:  # what was asked for, but for something beside it
                result.report.print(console)
            raise
        if options.try_load:
            try_in_fresh_process(options.out)
    result.report.print(console)
    console.print(f"artifact: {options.out}", highlight=False, soft_wrap=True)


def _compiled(
    options: CompileOptions,
    target: Target,
    emitted: Emitted,
    console: Console,
    place: OutputPlace | None = None,
) -> tuple[Result, Any]:
    """The result, and the processor to save along. What interrupts or fails behind the last pass
    leaves a result, which goes beside `place`, since it was not judged, and not into it."""
    source = _opened(options)
    if emitted.onnxruntime:
        refuse_dtypes(source.model)
    if place is not None:
        place.refuse_full(least_bytes(source.model, target), "the artifact")
    data = _data(options, source)
    train = data if options.steps != 0 else None
    evaluate = _evaluate(options, source, console)
    try:
        result = compile(
            source.model,
            source.args,
            kwargs=source.kwargs,
            target=target,
            outputs=options.outputs,
            untie_tables=options.untie_tables,
            calibration=unlabelled(data, source.model, source.kwargs),
            train=train,
            evaluate=evaluate,
            floor=options.floor,
            rounds=options.rounds,
            checkpoint=options.checkpoint,
            device=options.device,
            recipe=options.recipe,
            options=pass_options(options),
            keep_class=options.keep_class,
            measure=options.measure,
            strict=options.strict,
            callback=lambda step, outcome, seconds: _progress(console, step, outcome, seconds),
        )
    except BaseException as error:
        made = getattr(error, "result", None)
        if made is None or place is None:
            raise
        kept = made.save(free_name(place.target), processor=source.processor)
        after = told(error, kept)
        _say_kept(after)
        raise after from error
    return result, source.processor


def _say_kept(error: BaseException) -> None:
    """An interruption has no text of its own on the way out."""
    kept = getattr(error, "kept", None)
    if isinstance(error, KeyboardInterrupt) and kept is not None:
        raise InterruptedCompile(f"interrupted; what was made by then is in {kept}") from error


def _sweep(options: CompileOptions, console: Console) -> None:
    """Several targets from one set of scores: sweep.json and sweep.png in the directory."""
    targets = Target.parse_several(options.sweep or "", options.runtime, options.batch)
    refuse_file(options.out)
    refuse_options(options, targets[0])
    refuse_unwritable(options.out, "--out")
    source = _opened(options)
    data, evaluate = _data(options, source), _evaluate(options, source, console)
    found = sweep(
        source.model.to(options.device),
        to_device(tuple(source.args or ()), options.device),
        kwargs=to_device(dict(source.kwargs or {}), options.device),
        targets=targets,
        outputs=options.outputs,
        untie_tables=options.untie_tables,
        calibration=unlabelled(data, source.model, source.kwargs),
        evaluate=evaluate,
        recipe=options.recipe,
        options={k: v for k, v in pass_options(options).items() if k != "distill"},
        keep_class=options.keep_class,
        callback=lambda row: console.print(f"{row.asked}: {row.failed or 'done'}"),
    )
    console.print(found.table())
    written = options.out / SWEEP[0]
    write_whole(written, json.dumps(found.to_json(), indent=1))
    try:
        written = found.plot(options.out / SWEEP[1])
    except (PlanError, OSError) as error:
        console.print(f"note: {error}")
    console.print(f"sweep: {written}", soft_wrap=True)


def _opened(options: CompileOptions) -> Source:
    """MODEL; `--task` is checked here, since without data nobody reads it."""
    source = open_model(options.model, options.inputs)
    named_task(options.task, source)
    return source


def _progress(console: Console, step: Pass, outcome: PassResult, seconds: float) -> None:
    console.print(
        f"{step.name:<16} {seconds:6.1f} s  {outcome.summary}",
        soft_wrap=True,
    )


def _data(options: CompileOptions, source: Source) -> Iterable[Any] | None:
    """DATA in another order each epoch."""
    if options.data is None:
        return None
    limit = options.max_samples
    return _read(options, source, options.data, options.split, max_samples=limit, shuffle=True)


def _read(
    options: CompileOptions,
    source: Source,
    spec: str,
    split: str,
    *,
    max_samples: int | None = None,
    shuffle: bool = False,
) -> Iterable[Any]:
    return load_data(
        spec,
        source,
        batch_size=options.batch_size,
        max_samples=max_samples,
        split=split,
        task=options.task,
        columns=column_roles(options.columns),
        max_length=options.max_length,
        pad_to=options.pad_to,
        seed=SEED,
        shuffle=shuffle,
    )


def _evaluate(
    options: CompileOptions, source: Source, console: Console
) -> Callable[[nn.Module], Any] | None:
    """The user's function, or the metric of the task on the evaluation data."""
    spec, data = options.evaluate, options.eval_data or (options.eval_split and options.data)
    if spec is not None and data:
        raise SourceError("--evaluate brings its own data: leave --eval-data and --eval-split out.")
    if options.eval_split and not data:
        raise SourceError("--eval-split is a split of --data, or of --eval-data: give one.")
    if data:
        split = options.eval_split or TRAIN
        if (data, split) == (options.data, options.split):
            console.print(
                "note: original and result are judged on the data that they are made with"
            )
        batches = _read(options, source, data, split)  # all of it: a part would judge by chance
        task = named_task(options.task, source).name
        return metric_for(task, batches, source.model)
    if spec is None:
        return None
    if ":" not in spec:
        raise SourceError(f"--evaluate {spec!r} is not module:function, as in mine:accuracy.")
    function: Any = import_factory(spec)
    if not callable(function):
        raise SourceError(f"--evaluate {spec} is not callable; name a function of a model.")
    return function


def _dry_run(options: CompileOptions, source: Source, target: Target, console: Console) -> None:
    """Plan only: everything up to the rewrite."""
    data = _data(options, source)
    graph = capture(
        source.model.to(options.device).eval(),
        to_device(tuple(source.args or ()), options.device),
        kwargs=to_device(dict(source.kwargs or {}), options.device),
        outputs=options.outputs,
        untie_tables=options.untie_tables,
    )
    entries = read_recipe(options.recipe)
    calibration = to_device(unlabelled(data, source.model, source.kwargs), options.device) or None
    supplies = {"target": target, "train": None, "calibration": calibration, "device": None}
    supplies["keep_class"] = options.keep_class
    passes, _ = build_pipeline(entries, supplies, pass_options(options))
    planning = [step for step in passes if not {"dense"} & {*step.provides, *step.needs}]
    result = PassManager(
        planning, lambda step, outcome, seconds: _progress(console, step, outcome, seconds)
    ).run(graph, calibration)
    result.report.print(console)
    for row in result.report.dimensions:
        if row.state == "pruned":
            console.print(
                f"  {row.before:>6} -> {row.after:<6} {row.kind:<12} {row.name}",
                soft_wrap=True,
            )
    console.print("dry run: nothing was rewritten or written")
