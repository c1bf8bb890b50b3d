"""One set of scores, several targets: what each costs in quality and gives in speed."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn

from .capture.batches import forward_arguments, held_batches, to_device
from .capture.capture import capture
from .capture.eval_mode import eval_mode
from .capture.finite import FiniteCheck
from .capture.inputs import positional
from .capture.models import plain_model
from .compilation import Compilation
from .console import PlainTable, plain_console
from .emit.class_needs import check_mode
from .errors import PlanError, TargetError
from .option_types import checked, shown
from .pass_class import Pass, PassResult
from .passmanager import PassManager
from .quality import output_error, score
from .recipe import build_pipeline, read_recipe
from .result import Result
from .target import Target


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One target: asked and predicted (in the target's unit), the speed-up measured beside the
    original with its 95 % interval, what is kept of parameters and MACs, and the relative squared
    error of the outputs; `evaluate` where it was given. `failed`: why there is no result."""

    asked: str
    predicted: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    params: float | None = None
    macs: float | None = None
    error: float | None = None
    evaluate: float | None = None
    failed: str = ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, in the order of its targets. `batch`, `runtime`, `device`: of the
    timings; `original`: what `evaluate` gives the original."""

    model: str
    rows: tuple[SweepRow, ...]
    runtime: str
    device: str
    batch: int | None
    original: float | None = None

    def front(self) -> tuple[SweepRow, ...]:
        """The rows that no other one beats in both speed and quality (Pareto), fastest first."""
        done = [r for r in self.rows if r.speedup is not None and r.error is not None]
        best: list[SweepRow] = []
        for row in sorted(done, key=lambda r: (-(r.speedup or 0), _badness(r))):
            if not best or _badness(row) < _badness(best[-1]):
                best.append(row)
        return tuple(best)

    def table(self) -> Table:
        """A row for each target; `*` marks the Pareto front."""
        title = f"{self.model}: {self.runtime} on {self.device}"
        table = PlainTable(title=title, title_justify="left")
        names = ["asked", "predicted", "measured", "95 %", "parameters", "MACs", "output error"]
        judged = any(r.evaluate is not None for r in self.rows)
        for name in [*names, *(["evaluate"] if judged else []), "front"]:
            table.add_column(name, justify="left" if name == "asked" else "right")
        front = self.front()
        for r in self.rows:
            if r.failed:
                table.add_row(r.asked, "-", "out of reach", *["-"] * (len(table.columns) - 3))
                continue
            cells = [r.asked, _number(r.predicted, ".3g"), _number(r.speedup, ".2f", "x")]
            cells.append(f"{_number(r.low, '.2f')}-{_number(r.high, '.2f')}")
            cells += [_number(r.params, ".1%"), _number(r.macs, ".1%"), _number(r.error, ".2e")]
            cells += [_number(r.evaluate, ".4f")] if judged else []
            table.add_row(*cells, "*" if r in front else "")
        if self.original is not None:
            table.caption = f"evaluate of the original: {self.original:.4f}"
        return table

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def plot(self, path: str | pathlib.Path) -> pathlib.Path:
        """A picture: quality against measured speed, the Pareto front as a line. Needs matplotlib;
        raises PlanError without it."""
        from .sweep_plot import draw

        return draw(self, pathlib.Path(path))

    def __str__(self) -> str:
        stream = io.StringIO()
        plain_console(stream, 120).print(self.table())
        return stream.getvalue()


@dataclasses.dataclass
class _KnownScores(Pass):
    """Scores and errors that another run measured."""

    state: Compilation
    name: ClassVar[str] = "known-scores"
    provides: ClassVar[tuple[str, ...]] = ("scores", "errors")

    def run(self, state: Compilation) -> PassResult:
        state.scores, state.errors = self.state.scores, self.state.errors or {}
        return PassResult(False, "measured once for all targets")


@checked("model", "args", "targets")
def sweep(
    model: nn.Module,
    args: Sequence[Any] | Tensor | None = None,
    *,
    targets: Sequence[Target],
    kwargs: Mapping[str, Any] | None = None,
    outputs: Sequence[str | int] | str | int | None = None,
    untie_tables: bool = False,
    calibration: Iterable[Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    recipe: str | pathlib.Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    keep_class: str = "auto",
    callback: Callable[[SweepRow], None] | None = None,
) -> Sweep:
    """Score once, then allocate, cut, repair and time for each target; nothing is trained.

    Arguments are those of `compile`. A target out of reach is a row that says so. The error of the
    outputs is over the calibration batches, over the example inputs without. Raises TargetError
    for no target or targets of several runtimes or batches, PlanError for a recipe that has no
    pass which takes the target, and for a plan that is refused whatever the target.
    """
    if not isinstance(targets, Sequence) or not all(isinstance(t, Target) for t in targets):
        raise TargetError(
            f"targets is a list of Targets, as in [Target(speedup=1.5), Target(speedup=2)], not "
            f"{shown(targets)}."
        )
    settings = {(t.runtime, t.batch) for t in targets}
    if len(settings) != 1:
        raise TargetError("a sweep takes one target or more, all of one runtime and batch.")
    check_mode(keep_class)
    model, call = plain_model(model), positional(args)
    with eval_mode(model):
        graph = capture(
            model, call, kwargs=dict(kwargs or {}), outputs=outputs, untie_tables=untie_tables
        )
        program = graph.program
        finite = FiniteCheck(model)
        finite.weights((program.args, program.kwargs))
        finite.batch((program.args, program.kwargs), "the example")
        batches = [to_device(b, program.device()) for b in held_batches(calibration)]
        held = list(finite.batches(batches, "calibration batch"))
        entries = read_recipe(recipe)
        supplies = {"target": targets[0], "train": None, "calibration": held or None}
        supplies["keep_class"] = keep_class
        calls = [forward_arguments(batch) for batch in held]
        scored = Compilation(graph, [program.flat_inputs(*call, check=False) for call in calls])
        for step in _scoring(build_pipeline(entries, supplies | {"device": None}, options)[0]):
            step.run(scored)
        calls = [_call(b) for b in held] or [(program.args, program.kwargs)]
        before = score(evaluate, model, original=True) if evaluate is not None else None
        rows: list[SweepRow] = []
        refused: list[PlanError] = []
        for target in targets:
            supplies = supplies | {"target": target, "device": None}
            passes = build_pipeline(entries, supplies, options)[0]
            rest = passes[len(_scoring(passes)) :]
            try:
                result = PassManager([_KnownScores(scored), *rest]).run(graph, held)
                rows.append(_row(result, target, calls, evaluate))
            except (TargetError, PlanError) as error:
                rows.append(SweepRow(str(target), failed=str(error)))
                refused += [error] if isinstance(error, PlanError) else []
            if callback is not None:
                callback(rows[-1])
    if len(refused) == len(targets):  # an option is wrong, not a target
        raise refused[0]
    (runtime, batch), *_ = settings
    name = type(model).__name__
    return Sweep(name, tuple(rows), runtime, str(program.device()), batch, before)


def _scoring(passes: Sequence[Pass]) -> list[Pass]:
    """The passes before the one that takes the target."""
    for i, step in enumerate(passes):
        if hasattr(step, "target"):
            return list(passes[:i])
    raise PlanError("a sweep needs a recipe with a pass that takes the target.")


def _call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = forward_arguments(batch)
    return tuple(args or ()), dict(kwargs or {})


def _row(
    result: Result,
    target: Target,
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    evaluate: Callable[[nn.Module], float] | None,
) -> SweepRow:
    timed = result.measure(target.runtime, target.batch, attempts=3)
    report = result.report
    with torch.no_grad():
        quality = score(evaluate, result.model, original=False) if evaluate is not None else None
    return SweepRow(
        asked=str(target),
        predicted=report.aim.predicted if report.aim is not None else None,
        speedup=timed.ratio,
        low=timed.ratio_low,
        high=timed.ratio_high,
        params=report.after.params / max(report.before.params, 1),
        macs=report.after.macs / max(report.before.macs, 1),
        error=output_error(result.source, result.model, calls),
        evaluate=quality,
    )


def _badness(row: SweepRow) -> float:
    """What quality is judged by: `evaluate` where it was given, the outputs' error otherwise."""
    return -row.evaluate if row.evaluate is not None else row.error or 0.0


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
