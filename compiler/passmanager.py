"""What a pass is, and the manager that checks the order, runs the passes and verifies each one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from .capture.finite import FiniteCheck
from .compilation import Compilation
from .errors import PassOrderError, PlanError
from .inference.graph import Graph
from .option_types import CheckedOptions, checked, require, shown
from .report import PassReport
from .result import Result
from .rounds import continue_from, smaller_state, take_scores
from .user_code import call_user, user_batches
from .verify.backends import check_backends
from .verify.check import require_proven
from .verify.structure import check_finite, check_structure


@dataclasses.dataclass
class PassResult:
    """What one pass did.

    `summary` is one line for people; `details` is what the report stores (JSON types only).
    """

    changed: bool
    summary: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class Pass(metaclass=CheckedOptions):
    """One step of a pipeline. Subclass as a dataclass: its fields are its options.

    `needs` and `provides` name facts about the compilation: "scores", "widths", "plan", "dense".
    `forbids` names facts that must not hold yet ("dense": the graph has been rewritten).
    `run` may raise any `PrunecError`; the manager verifies the compilation after it returns.
    Options that the annotations do not fit raise ArgumentError.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    forbids: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Compilation) -> PassResult:
        raise PlanError(f"{type(self).__name__} does not say what it does: give it a method run.")

    def options(self) -> dict[str, Any]:
        """The options as JSON types, for the report; a data loader becomes its type's name, and a
        field `calibration`, which is data and no option, is left out."""
        if not dataclasses.is_dataclass(self):
            return {}
        names = [f.name for f in dataclasses.fields(self) if f.name != "calibration"]
        values = {name: getattr(self, name) for name in names}
        return {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 32:
        return [_plain(v) for v in value]
    if isinstance(value, dict) and len(value) <= 32:
        return {str(k): _plain(v) for k, v in value.items()}
    return type(value).__name__


Callback = Callable[[Pass, PassResult, float], None]


class PassManager:
    """An ordered list of passes. The order is checked before anything runs.

    `run` gives a Result; the graph and the model it was captured from are never changed.
    """

    def __init__(self, passes: Sequence[Pass], callback: Callback | None = None) -> None:
        if not isinstance(passes, Sequence) or isinstance(passes, str):
            raise PassOrderError(f"PassManager takes a list of passes, not {shown(passes)}.")
        require("PassManager", "callback", Callback | None, callback)
        self.passes = list(passes)
        self.callback = callback
        check_order(self.passes)

    @checked()
    def run(
        self,
        graph: Graph,
        calibration: Sequence[Any] | None = None,
        start: Result | None = None,
        strict: bool = False,
    ) -> Result:
        """Run the passes, verifying after each.

        `calibration`: unlabelled batches (tensor, tuple of arguments, or dict of them) on which
        the dense model is also compared with its reference. `start`: an earlier result of the same
        graph, which this run cuts further: what it removed stays removed, scores are of its model,
        whose weights go on; plan and proof are of the original. `strict`: a check that proves
        nothing is an error, after the pass that it is of. Raises what a pass raises, PlanError when
        nothing at all was changed, VerificationError when a pass left an invalid state,
        NonFiniteError for bad values in weights, example or batches.
        """
        from .capture.batches import forward_arguments

        finite, program = FiniteCheck(graph.source), graph.program
        if start is None:
            finite.weights((program.args, program.kwargs))
            finite.batch((program.args, program.kwargs), "the example")
        batches = [
            program.flat_inputs(*forward_arguments(item), check=False)
            for item in finite.batches(
                user_batches("calibration", calibration or ()), "calibration batch"
            )
        ]
        state = Compilation(graph, batches)
        if batches and not state.samples:  # some may be of other sizes, a last one that is shorter
            program.check(batches[0])
        reports: list[PassReport] = []
        if start is not None:
            continue_from(state, start.state)
            reports += start.report.passes
        for step in self.passes:
            began = time.perf_counter()
            result = _run(step, state)
            state.facts.update(step.provides)
            verify_state(state, result.changed)
            if strict:
                require_proven(state.checks)
            seconds = time.perf_counter() - began
            summary = f"round {state.round}: " * (state.round > 1) + result.summary
            reports.append(PassReport(step.name, step.options(), summary, result.details, seconds))
            if self.callback is not None:
                call_user("callback", self.callback, step, result, seconds)
        if not (state.plan.kept or state.plan.dead or state.plan.dropped or state.masks):
            raise PlanError(
                "the pipeline changed nothing: no dimension was pruned, no branch dropped. Lower "
                "round_to, raise the ratio, or widen include; `graph.explain()` lists what can be "
                "pruned."
            )
        return Result(state, reports)


def _run(step: Pass, state: Compilation) -> PassResult:
    """In a later round scores are of the model as the earlier one left it."""
    if state.earlier is None or "scores" not in step.provides:
        return step.run(state)
    smaller = smaller_state(state.earlier, state.calibration)
    result = step.run(smaller)
    take_scores(state, smaller)
    return result


def check_order(passes: Sequence[Pass]) -> None:
    """Raise PassOrderError, naming the pass, when a need is not met by an earlier pass."""
    facts: dict[str, str] = {}
    for step in passes:
        if not isinstance(step, Pass):
            raise PassOrderError(
                f"{step!r} is not a pass; pass instances of prunec.passes classes."
            )
        for need in step.needs:
            if need not in facts:
                raise PassOrderError(
                    f"{type(step).__name__} needs {need}, which no pass before it provides; put "
                    f"{_providers(need)} before it."
                )
        for forbidden in step.forbids:
            if forbidden in facts:
                present = (
                    "the graph is dense" if forbidden == "dense" else f"there is a {forbidden}"
                )
                raise PassOrderError(
                    f"{type(step).__name__} cannot stand after {facts[forbidden]}: {present} by "
                    "then; move it before, or capture the result and prune again."
                )
        facts.update(dict.fromkeys(step.provides, type(step).__name__))


def _providers(need: str) -> str:
    known = {
        "scores": "a score such as MagnitudeScore",
        "plan": "PruneHeads or PruneChannels",
        "dense": "SparseToDense",
        "widths": "AllocateWidths",
    }
    return known.get(need, f"a pass that provides {need}")


def verify_state(state: Compilation, changed: bool) -> None:
    """What holds after every pass: a valid plan; once dense, consistent shapes, agreeing back ends
    and finite weights."""
    for name, kept in state.plan.kept.items():
        dimension = state.graph.dimensions[name]
        valid = kept == sorted(set(kept)) and kept and 0 <= kept[0] <= kept[-1] < dimension.size
        if not valid or len(kept) < dimension.minimum:
            raise PlanError(f"the plan for '{name}' is invalid: {len(kept)} entries kept.")
    if state.dense is not None and changed:
        check_structure(state.graph, state.dense.program, state.plan.combined())
        check_finite(state.dense.model)
        check_backends(state)
