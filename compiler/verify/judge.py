"""Runs a check: what was found against what was expected, and whether it could have seen a mistake.

A mistake is made on purpose, and must move what is compared. Outputs may hide one (saturated,
masked, an index of the largest): the values in which dimensions end are compared as well.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..inference.graph import Graph
from ..ir.program import Program
from ..ir.terms import Var, variables
from .check import TOLERANCE, Check
from .difference import FLOOR, Difference, difference, largest, relative_error
from .interpreter import ProgramInterpreter

Inputs = Sequence[Sequence[Any]]
MOST = 1e9  # of a sensitivity: shapes or integers that differ are no number
POINTS = 64  # values beside the outputs that are looked at


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is compared: `found` must give what `expected` gives, `wrong` must not."""

    found: ProgramInterpreter
    expected: ProgramInterpreter
    wrong: ProgramInterpreter


Trials = Callable[[torch.dtype | None], Trial]


def working_dtype(program: Program) -> torch.dtype | None:
    """Half-precision models are judged in float32; others as they are."""
    kinds = {t.dtype for t in program.tensors.values() if t.is_floating_point()}
    return torch.float32 if kinds & {torch.float16, torch.bfloat16} else None


def precision(program: Program, dtype: torch.dtype | None = None) -> str:
    """The name of the dtype a program runs in."""
    floats = (t.dtype for t in program.tensors.values() if t.is_floating_point())
    return str(dtype or next(floats, torch.float32)).removeprefix("torch.")


def judge(
    name: str, program: Program, inputs: Inputs, trials: Trials, points: Sequence[str] = ()
) -> Check:
    """The check of a trial over the inputs, in float32 (or the model's dtype); an input on which
    that fails is judged again in float64, since deep nets amplify rounding.

    `points`: nodes whose values are compared too.
    """
    first = working_dtype(program)
    worst, moved, used = 0.0, 0.0, first
    blind: frozenset[int] | None = None
    count = 0
    for x in inputs:
        for dtype in (first, torch.float64):
            trial = trials(dtype)
            expected = values_at(trial.expected, x, points)
            count = len(expected) - len(points)
            gap = _apart(values_at(trial.found, x, points), expected, count)
            if gap.error <= TOLERANCE or dtype == torch.float64:
                break
        worst, used = max(worst, gap.error), dtype if dtype == torch.float64 else used
        blind = gap.blind if blind is None else blind & gap.blind
        if moved <= TOLERANCE:
            wrong = functools.partial(values_at, trial.wrong, x, points)
            apart = functools.partial(_apart, outputs=count)
            moved = max(moved, shift(wrong, expected, lambda a, b: apart(a, b).error))  # noqa: B023
    unseen = [place for place in sorted(blind or ()) if place < count]
    why = blindness(moved, unseen, inputs)
    moved = min(moved, MOST)
    return Check(
        name, worst, precision(program, used), len(inputs), sensitivity=moved, unproven=why
    )


def _apart(found: Sequence[Any], expected: Sequence[Any], outputs: int) -> Difference:
    """The difference of the outputs and of what follows them: values inside, of which one may be
    nothing but rounding (a sum of what was centred). Beside the others it then counts as small."""
    ends = expected[outputs:]
    first = difference(found[:outputs], expected[:outputs])
    least = FLOOR * largest(expected) if ends else 0.0
    second = difference(found[outputs:], ends, least=least)
    return Difference(
        max(first.error, second.error), max(first.whole, second.whole), first.blind
    )


def shift(
    wrong: Callable[[], list[Any]],
    expected: Sequence[Any],
    error: Callable[[Sequence[Any], Sequence[Any]], float] = relative_error,
) -> float:
    """How far a deliberate mistake moves what is compared; what it makes raise shows as well."""
    try:
        return error(wrong(), expected)
    except Exception:  # whatever ops raise on values that no mistake was meant to give
        return MOST


def blindness(moved: float, unseen: Collection[int], inputs: Sequence[Any]) -> str:
    """Why a check proves nothing; '' where it does. `unseen`: outputs without a finite value."""
    if not inputs:
        return "there are no inputs to compare on"
    if unseen:
        return f"output {min(unseen)} holds no finite value on any of {len(inputs)} inputs"
    if not moved > TOLERANCE:
        return f"a deliberate mistake moves the outputs by {moved:.1e} only"
    return ""


def values_at(run: ProgramInterpreter, inputs: Sequence[Any], points: Sequence[str]) -> list[Any]:
    """The outputs of a run, and the values of the nodes of those names."""
    if not points:
        return run(inputs)
    seen: dict[str, Any] = {}
    chained = run.node_hook

    def keep(node: fx.Node, value: Any) -> Any:
        value = chained(node, value) if chained is not None else value
        if node.name in points:  # an op in place may write to it later
            seen[node.name] = value.clone() if isinstance(value, Tensor) else value
        return value

    run.node_hook = keep
    try:
        return [*run(inputs), *(seen.get(name) for name in points)]
    finally:
        run.node_hook = chained


def ends(graph: Graph, cut: Collection[Var], without: Collection[str] = ()) -> list[str]:
    """The nodes where dimensions end: of what carries some of `cut` they make a float value that
    carries none, so that it must be what it was, in rows whose order is no accident of how experts
    are numbered. Those nearest to the outputs, in order."""
    cut = set(cut)
    terms = graph.inference.terms

    def carries(node: fx.Node) -> bool:
        known = terms.get(node)
        groups = known if isinstance(known, tuple) else (known,)
        return any(
            v in cut
            for group in groups
            if isinstance(group, list)
            for t in group
            for v in variables(t)
        )

    found: list[str] = []
    for node in graph.program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or node.name in without:
            continue
        if node in graph.inference.arranged:
            continue
        if not value.is_floating_point() or not isinstance(terms.get(node), list) or carries(node):
            continue
        if any(carries(n) for n in node.all_input_nodes):
            found.append(node.name)
    return found[-POINTS:]


def reversed_tensor(name: str, tensor: Tensor) -> Tensor:
    """A deliberate mistake in every weight: its values in the opposite order. None leaves its
    range, so that a positive one stays positive."""
    return tensor.flip(tuple(range(tensor.dim()))) if tensor.is_floating_point() else tensor
