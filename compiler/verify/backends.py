"""The back ends against each other: graph module == program, module == graph module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from ..capture.examples import fresh_inputs
from ..capture.train_mode import train_mode
from ..cause import cause
from ..errors import VerificationError
from ..inference.graph import Graph
from ..ir.program import Program
from .interpreter import ProgramInterpreter, full_precision, relative_error
from .oracles import TOLERANCE, Check, Inputs, precision, working_dtype

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
    worst = 0.0
    expected = reference_outputs(program, calls) if expected is None else expected
    training = {m: m.training for m in module.modules()}
    buffers = [(b, b.clone()) for b in module.buffers()]  # a forward may count its calls
    for m in module.modules():
        m.training = False
    try:
        for (args, kwargs), wanted in zip(calls, expected, strict=True):
            with torch.no_grad(), full_precision(), shapes_only(program) as as_run:
                args, kwargs = as_run((args, kwargs))
                found = _seeded(lambda: module(*args, **kwargs))  # noqa: B023
            found = select_like(program, found)
            worst = max(worst, relative_error(found, wanted))
            for buffer, before in buffers:  # each call from where the program starts
                buffer.copy_(before)
    finally:
        for m, mode in training.items():
            m.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)
    return worst


def training_break(program: Program, module: nn.Module, call: Call) -> str:
    """What a smaller module raises in train mode where the program's source does not; '' where it
    runs."""
    error = _raised_in_training(program, module, call)
    return (
        "" if error is None or _raised_in_training(program, program.source, call) else cause(error)
    )


def _raised_in_training(program: Program, module: nn.Module, call: Call) -> Exception | None:
    try:
        with train_mode(module), shapes_only(program) as as_run:
            args, kwargs = as_run(call)
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
    with fake:
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
        draws = [fresh_inputs(program.args, program.kwargs, seed=50 + i) for i in range(8)]
        inputs = [*inputs, *(program.flat_inputs(*draw) for draw in draws)]
    calls = [pytree.tree_unflatten(list(flat), program.in_spec) for flat in inputs]
    error = module_error(program, graph.source, calls)
    return Check(
        "graph == model", error, precision(program), len(calls), back_end_tolerance(program)
    )


def back_end_tolerance(program: Program) -> float:
    """Half precision rounds where the two run their ops in another order."""
    return TOLERANCE if working_dtype(program) is None else 2e-2


def example_calls(graph: Graph) -> list[Call]:
    """The example inputs and fresh ones like them."""
    program = graph.program
    return [
        (program.args, program.kwargs),
        fresh_inputs(program.args, program.kwargs, seed=7),
    ]


def check_backends(state: Compilation) -> None:
    """Raise VerificationError unless the graph module, the module and the program agree."""
    dense = state.dense
    assert dense is not None
    limit = back_end_tolerance(dense.program)
    for name, module in (("graph module", dense.graph_module), ("module", dense.module)):
        if module is None:
            continue
        error = module_error(dense.program, module, example_calls(state.graph))
        state.checks = [c for c in state.checks if c.name != f"{name} == program"]
        state.checks.append(Check(f"{name} == program", error, precision(dense.program), 2, limit))
        if error > limit:
            raise VerificationError(
                f"the {name} differs from the dense graph by {error:.2e} (limit {limit:.0e})."
            )
