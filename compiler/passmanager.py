"""The pass manager: it checks the order of passes, runs them and verifies what each left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from .capture.finite import FiniteCheck
from .compilation import Compilation
from .errors import PassError, PassOrderError, PlanError
from .facts import Fact, check_facts, check_plan
from .inference.graph import Graph
from .option_types import checked, require, shown
from .original import OriginalTensors
from .pass_class import Pass, PassResult
from .registry import providers
from .report import PassReport
from .result import Result
from .rounds import continue_from, smaller_state, take_scores
from .user_code import call_user, user_batches
from .verify.backends import check_backends
from .verify.check import require_proven
from .verify.structure import check_finite, check_structure

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
        nothing at all was changed, PassError when a pass broke its contract, VerificationError when
        it left an invalid state, NonFiniteError for bad values in weights, example or batches.
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
        original = OriginalTensors(graph)
        for step in self.passes:
            began = time.perf_counter()
            result = _run(step, state)
            verify_state(state, type(step).__name__, original)
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
    """Run a pass. In a later round scores are of the model as the earlier one left it."""
    seen, measures = state, Fact.SCORES in step.provides and Fact.PLAN not in step.provides
    if state.earlier is not None and measures:
        seen = smaller_state(state.earlier, state.calibration)
    result = step.run(seen)
    if not isinstance(result, PassResult):
        raise PassError(
            f"{type(step).__name__}.run returned {shown(result)}: return a PassResult that says "
            "what changed."
        )
    state.facts.update(map(Fact, step.provides))
    if seen is not state:
        seen.facts.update(state.facts)
        check_facts(seen, type(step).__name__)
        take_scores(state, seen)
    return result


def check_order(passes: Sequence[Pass]) -> None:
    """Raise PassOrderError, naming the pass, when a need is not met by an earlier pass."""
    facts: dict[str, str] = {}
    for step in passes:
        if not isinstance(step, Pass):
            raise PassOrderError(
                f"{step!r} is not a pass; pass instances of prunec.passes classes."
            )
        for declared in ("needs", "provides", "forbids"):
            for fact in getattr(step, declared):
                if fact not in tuple(Fact):
                    raise PassOrderError(
                        f"{type(step).__name__} {declared} {fact!r}, which is no fact; there are "
                        f"{', '.join(Fact)}."
                    )
        for need in step.needs:
            if need not in facts:
                raise PassOrderError(
                    f"{type(step).__name__} needs {need}, which no pass before it provides; put "
                    f"{providers(need)} before it."
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


def verify_state(state: Compilation, who: str, original: OriginalTensors) -> None:
    """What holds after every pass: facts that attributes agree with, a valid plan, the original's
    tensors as they were; once dense, consistent shapes, agreeing back ends and finite weights."""
    original.check(who)
    check_facts(state, who)
    check_plan(state)
    if state.dense is not None:
        check_structure(state.graph, state.dense.program, state.plan.combined())
        check_finite(state.dense.model)
        check_backends(state)
