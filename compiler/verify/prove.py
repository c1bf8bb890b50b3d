"""Runs the three checks on a dense program, and names the culprit when one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..cause import cause
from ..errors import VerificationError
from ..inference.graph import Graph
from ..ir.program import Program
from ..rewrite.dead import DeadEntries
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept
from .backends import capture_error
from .blame import blame_drop, blame_permutation, blame_plan
from .check import Check, not_run, require
from .dropped import dropped
from .fresh import fresh_call
from .judge import Inputs
from .oracles import permutation, restricted_statistics, unsupported_statistics, zero_mask
from .sizes import few_rows, other_batch, other_lengths

if TYPE_CHECKING:
    from ..compilation import Compilation

CALIBRATION_CHECKED = 2  # batches: one may be unlucky, more cost time
ROWS_CHECKED = 4
BRANCH = (
    "the model takes another path on these inputs than on the example ones, and capture fixed that "
    "path: replace the branch by torch.where or torch.cond"
)


def verification_inputs(state: Compilation, seed: int = 1) -> list[list[Any]]:
    """Flat inputs the checks run on: the user's own example, fresh ones, fresh ones of another size
    where sizes may vary, and calibration batches."""
    program = state.graph.program
    inputs = proof_inputs(program, seed)
    # rows enough to see a difference; the proof needs variety, not volume
    few = state.samples[:CALIBRATION_CHECKED]
    return [*inputs, *(few_rows(program, flat, ROWS_CHECKED) for flat in few)]


def proof_inputs(program: Program, seed: int) -> list[list[Any]]:
    """What the checks run on without calibration data."""
    example = program.args, program.kwargs
    calls = [example, fresh_call(program, seed)]
    if program.batched or program.dynamic:
        more = fresh_call(program, seed + 1)
        calls.append(other_lengths(program, other_batch(program, *more)))
    return [program.flat_inputs(*call) for call in calls]


def prove(
    graph: Graph, program: Program, planned: Kept, dead: DeadEntries, inputs: Inputs
) -> list[Check]:
    """That the graph is the model's, that what remains of it without dropped branches is the model
    with their values replaced, and the three checks of a dense program.

    `planned`: kept entries of planned removals; `inputs`: flat inputs to compare on. Weights on the
    meta device cannot be compared: one check says so. Raises VerificationError with the culprit.
    """
    if graph.program.is_meta:
        return [not_run("all", "weights are on the meta device")]
    try:
        return _checks(graph, program, planned, dead, inputs)
    except VerificationError:
        raise
    except Exception as error:  # the structure check has passed: sizes depend on values
        raise VerificationError(
            f"a check cannot run ({cause(error)}): sizes in this model depend on computed values, "
            "and masked weights compute others. Nothing was written."
        ) from error


def _checks(
    graph: Graph, program: Program, planned: Kept, dead: DeadEntries, inputs: Inputs
) -> list[Check]:
    checks = [require(capture_error(graph.whole, inputs), lambda: BRANCH)]
    if graph.drops:
        checks.append(require(dropped(graph, inputs), lambda: blame_drop(graph, inputs[0])))
    checks.append(
        require(permutation(graph, inputs[:2]), lambda: blame_permutation(graph, inputs[0]))
    )
    coupled = {d.var for d in graph.prunable.values() if d.var in planned and not d.exact}
    exact = {var: kept for var, kept in planned.items() if var not in coupled}
    removed = {v: _without(planned, v, gone) for v, gone in dead.removed.items()}
    folded = [fold.node for fold in dead.folds]
    if exact or removed:
        part = (
            program
            if not coupled
            else rewrite(
                graph,
                {**exact, **{v: k for v, k in removed.items() if v not in coupled}},
                dead.folds,
                on_use=True,
            )
        )
        checks.append(
            require(
                zero_mask(graph, part, exact, inputs, removed, folded),
                lambda: blame_plan(graph, exact, inputs[0], statistics=False),
            )
        )
    if coupled:
        missing = unsupported_statistics(graph, planned)
        if missing:
            why = f"no reference for {missing[0].name} ({missing[0].target})"
            checks.append(not_run("restricted statistics", why))
        else:
            checks.append(
                require(
                    restricted_statistics(graph, program, planned, inputs, removed, folded),
                    lambda: blame_plan(graph, planned, inputs[0], statistics=True),
                )
            )
    return checks


def _without(planned: Kept, var: Any, gone: torch.Tensor) -> torch.Tensor:
    before = planned.get(var, torch.arange(var.size))
    return before[~torch.isin(before, gone)]
