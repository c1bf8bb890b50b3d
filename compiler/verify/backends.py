"""The back ends against each other: graph module == program, module == graph module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call
from ..capture.quiet_meta import quiet_meta
from ..capture.train_mode import train_mode
from ..capture.untouched import copy_on_write, untouched
from ..cause import cause
from ..errors import VerificationError
from ..inference.graph import Graph
from ..ir.program import Program
from .check import TOLERANCE, Check
from .difference import Difference, difference
from .fresh import fresh_call
from .interpreter import ProgramInterpreter, full_precision
from .judge import MOST, Inputs, blindness, precision, reversed_tensor, shift, working_dtype
from .sizes import other_batch

if TYPE_CHECKING:
    from ..compilation import Compilation

Call = tuple[tuple[Any, ...], dict[str, Any]]


def select_like(program: Program, outputs: Any) -> list[Any]:
    """Of a module's full output, the values that the program returns (`outputs=` may be fewer)."""
    flat, spec = pytree.tree_flatten(outputs)
    if spec.num_leaves == program.out_spec.num_leaves:
        return flat
    chosen = program.selection or []
    return [flat[i] for i in chosen]


def reference_outputs(program: Program, calls: Sequence[Call]) -> list[list[Any]]:
    """What a program gives for some calls, under the random numbers `module_error` uses."""
    run = ProgramInterpreter(program)
    return [_seeded(lambda: run(program.flat_inputs(*call))) for call in calls]  # noqa: B023


def exact_outputs(program: Program, call: Call) -> list[Any] | None:
    """What a program gives in float64 (None where it does not run so): how far its outputs are
    from these is what rounding explains."""
    run = ProgramInterpreter(program, dtype=torch.float64)
    try:
        return _seeded(lambda: run(program.flat_inputs(*call)))
    except Exception:  # whatever an op raises that has no kernel for float64
        return None


def module_error(
    program: Program,
    module: nn.Module,
    calls: Sequence[Call],
    expected: Sequence[Sequence[Any]] | None = None,
) -> float:
    """The worst relative difference between a module, in eval mode, and a program over some calls.

    `expected`: the program's `reference_outputs`, where several modules are compared with it.
    Whatever the module raises is raised. Both see the same random numbers.
    """
    return module_difference(program, module, calls, expected).error


def module_difference(
    program: Program,
    module: nn.Module,
    calls: Sequence[Call],
    expected: Sequence[Sequence[Any]] | None = None,
) -> Difference:
    """As `module_error`; `blind` are the outputs that hold no finite value in any call."""
    found: list[Difference] = []
    limit = back_end_tolerance(program)
    expected = reference_outputs(program, calls) if expected is None else expected
    for call, wanted in zip(calls, expected, strict=True):  # each from where the program starts
        outputs = select_like(program, run_module(program, module, call))
        gap = difference(outputs, wanted)
        if gap.whole <= limit < gap.error:  # a slice only: rounding, or a mistake
            gap = difference(outputs, wanted, exact_outputs(program, call))
        found.append(gap)
    return Difference(
        max((d.error for d in found), default=0.0),
        max((d.whole for d in found), default=0.0),
        frozenset.intersection(*(d.blind for d in found)) if found else frozenset(),
    )


def run_module(program: Program, module: nn.Module, call: Call) -> Any:
    """What a module returns in eval mode, without gradients; it and the call stay as they are."""
    with (
        untouched(module),
        eval_mode(module),
        copy_on_write(module),
        torch.no_grad(),
        full_precision(),
        shapes_only(program) as as_run,
    ):
        args, kwargs = as_run(copied_call(*call))
        return _seeded(lambda: module(*args, **kwargs))


def training_break(program: Program, module: nn.Module, call: Call) -> str:
    """What a smaller module raises in train mode where the program's source does not; '' where it
    runs."""
    error = _raised_in_training(program, module, call)
    return (
        "" if error is None or _raised_in_training(program, program.source, call) else cause(error)
    )


def _raised_in_training(program: Program, module: nn.Module, call: Call) -> Exception | None:
    try:
        with untouched(module), train_mode(module), shapes_only(program) as as_run:
            args, kwargs = as_run(copied_call(*call))
            _seeded(lambda: module(*args, **kwargs))
    except Exception as error:  # whatever a model raises
        return error
    return None


@contextlib.contextmanager
def shapes_only(program: Program) -> Iterator[Callable[[Any], Any]]:
    """Fake tensors in place of meta ones: with those, models know that there are no values to ask
    for (transformers reads its attention mask otherwise). Yields what makes arguments fit."""
    if not program.is_meta:
        yield lambda call: call
        return
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with quiet_meta(), fake:
        yield lambda call: pytree.tree_map_only(torch.Tensor, fake.from_tensor, call)


def _seeded(call: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call()


def capture_error(graph: Graph, inputs: Inputs) -> Check:
    """The captured graph against the model itself: a branch that capture fixed shows here.

    Both in eval mode, as it was captured.
    """
    program = graph.program
    if "draft" in program.how:  # a branch was fixed: try to leave it
        draws = [fresh_call(program, seed=50 + i) for i in range(8)]
        inputs = [*inputs, *(program.flat_inputs(*draw) for draw in draws)]
    calls = [pytree.tree_unflatten(list(flat), program.in_spec) for flat in inputs]
    expected = reference_outputs(program, calls)
    return _agreement("graph == model", program, graph.source, calls, expected)


def _agreement(
    name: str,
    program: Program,
    module: nn.Module,
    calls: Sequence[Call],
    expected: Sequence[Sequence[Any]],
    moved: float | None = None,
) -> Check:
    """The check that a module is a program. `moved`: its sensitivity, where that is known."""
    gap = module_difference(program, module, calls, expected)
    moved = sensitivity(program, calls, expected) if moved is None else moved
    limit, why = back_end_tolerance(program), blindness(moved, gap.blind, calls)
    kind = precision(program)
    return Check(name, gap.error, kind, len(calls), limit, sensitivity=moved, unproven=why)


def sensitivity(
    program: Program, calls: Sequence[Call], expected: Sequence[Sequence[Any]]
) -> float:
    """How far a program moves when its weights are in the wrong order: on the first call, on the
    others where that shows nothing."""
    run = ProgramInterpreter(program, tensor_hook=reversed_tensor)
    moved = 0.0
    for call, wanted in zip(calls, expected, strict=True):
        flat = program.flat_inputs(*call)
        moved = max(moved, shift(lambda: _seeded(lambda: run(flat)), wanted))  # noqa: B023
        if moved > TOLERANCE:
            break
    return min(moved, MOST)


def back_end_tolerance(program: Program) -> float:
    """Half precision rounds where the two run their ops in another order."""
    return TOLERANCE if working_dtype(program) is None else 2e-2


def example_calls(graph: Graph) -> list[Call]:
    """The example inputs, and fresh ones like them at another batch size where there is one; the
    user's own where rows were added to those."""
    program = graph.program
    fresh = fresh_call(program, seed=7)
    own = [] if program.given is None else [program.given]
    return [(program.args, program.kwargs), other_batch(program, *fresh), *own]


def check_backends(state: Compilation) -> None:
    """Raise VerificationError unless the graph module, the module and the program agree."""
    dense = state.dense
    assert dense is not None
    calls, program = example_calls(state.graph), dense.program
    expected = reference_outputs(program, calls)
    moved = 0.0 if program.is_meta else sensitivity(program, calls, expected)
    for label, module in (("graph module", dense.graph_module), ("module", dense.module)):
        if module is None:
            continue
        name = f"{label} == program"
        check = _agreement(name, program, module, calls, expected, moved)
        state.checks = [*(c for c in state.checks if c.name != name), check]
        if not check.passed:
            raise VerificationError(
                f"the {label} differs from the dense graph by {check.error:.2e} (limit "
                f"{check.limit:.0e})."
            )
