"""The three checks of every compile, and what they say when they fail.

Zero mask: dense == masked original, for exact dimensions. Restricted statistics: dense == original
over kept entries, for all. Permutation: reordering a dimension changes nothing; it tests the
inference itself, and needs no plan.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import VerificationError
from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..inference.rule import Gather
from ..ir.program import Program
from ..ir.terms import Var, variables
from ..rewrite.slicing import Kept, cut_tensor, gather_index, term_indices, zero_tensor
from .interpreter import ProgramInterpreter, relative_error
from .rescale import rescaler
from .restricted import RestrictedInterpreter, supported

TOLERANCE = 1e-4
Inputs = Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """One check's outcome: the worst relative error over the inputs, in which dtype it was judged.

    `sensitivity` (permutation only): how far a deliberately wrong permutation moves the output;
    near zero means the check cannot see. `skipped`: why it was not run (then there is no error).
    """

    name: str
    error: float | None
    dtype: str
    inputs: int
    limit: float = TOLERANCE
    sensitivity: float | None = None
    skipped: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.skipped) or (self.error is not None and self.error <= self.limit)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def working_dtype(program: Program) -> torch.dtype | None:
    """Half-precision models are judged in float32; others as they are."""
    kinds = {t.dtype for t in program.tensors.values() if t.is_floating_point()}
    return torch.float32 if kinds & {torch.float16, torch.bfloat16} else None


def precision(program: Program, dtype: torch.dtype | None = None) -> str:
    """The name of the dtype a program runs in."""
    floats = (t.dtype for t in program.tensors.values() if t.is_floating_point())
    return str(dtype or next(floats, torch.float32)).removeprefix("torch.")


def judged(run: Callable[[torch.dtype | None], float], program: Program) -> tuple[float, str]:
    """The error, in float32 (or the model's dtype); in float64 when that fails, since very deep
    nets amplify rounding."""
    dtype = working_dtype(program)
    error = run(dtype)
    if error <= TOLERANCE:
        return error, precision(program, dtype)
    return run(torch.float64), "float64"


def zero_mask(graph: Graph, dense: Program, planned: Kept, inputs: Inputs) -> Check:
    """Dense program against the original with every slice of a planned entry set to zero."""
    terms = graph.inference.tensors

    def run(dtype: torch.dtype | None) -> float:
        masked = ProgramInterpreter(
            graph.program,
            dtype=dtype,
            tensor_hook=lambda name, t: zero_tensor(t, terms[name], planned),
        )
        small = ProgramInterpreter(dense, dtype=dtype)
        return max(relative_error(small(x), masked(x)) for x in inputs)

    error, dtype = judged(run, graph.program)
    return Check("zero mask", error, dtype, len(inputs))


def restricted_statistics(graph: Graph, dense: Program, planned: Kept, inputs: Inputs) -> Check:
    """Dense program against the original graph with statistics over kept entries."""

    def run(dtype: torch.dtype | None) -> float:
        reference = RestrictedInterpreter(graph, planned, dtype)
        small = ProgramInterpreter(dense, dtype=dtype)
        return max(relative_error(small(x), reference(x)) for x in inputs)

    error, dtype = judged(run, graph.program)
    return Check("restricted statistics", error, dtype, len(inputs))


def unsupported_statistics(graph: Graph, planned: Kept) -> list[fx.Node]:
    """Statistic nodes over planned dimensions for which there is no reference."""
    return [
        s.node
        for s in graph.inference.statistics
        if any(v in planned for v in variables(s.term)) and not supported(s.node)
    ]


def permutation(graph: Graph, inputs: Inputs, seed: int = 0) -> Check:
    """A random permutation of every dimension, on rescaled weights, must change nothing."""
    dimensions = [d for d in graph.prunable.values() if d.var is not None]
    if not dimensions:
        return Check("permutation", None, "-", 0, skipped="no prunable dimension")
    moved = 0.0

    def run(dtype: torch.dtype | None) -> float:
        nonlocal moved
        hook = _usable_rescaler(graph, inputs, dtype)
        plain = [
            ProgramInterpreter(graph.program, dtype=dtype, tensor_hook=hook)(x) for x in inputs
        ]
        shuffled = permuted(graph, dimensions, seed, dtype, hook)
        wrong = permuted(graph, dimensions, seed, dtype, hook, consistent=False)
        errors = [relative_error(shuffled(x), y) for x, y in zip(inputs, plain, strict=True)]
        moved = max(relative_error(wrong(x), y) for x, y in zip(inputs, plain, strict=True))
        return max(errors)

    error, dtype = judged(run, graph.program)
    return Check("permutation", error, dtype, len(inputs), sensitivity=moved)


def _usable_rescaler(graph: Graph, inputs: Inputs, dtype: torch.dtype | None) -> Any:
    """The rescaled stand-in, unless it drives this model to infinity."""
    hook = rescaler(graph.program)
    values = ProgramInterpreter(graph.program, dtype=dtype, tensor_hook=hook)(inputs[0])
    floats = [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel()]
    return hook if all(bool(torch.isfinite(v).any()) for v in floats) else (lambda name, t: t)


def random_orders(dimensions: Sequence[Dimension], seed: int, salt: str = "") -> dict[Var, Tensor]:
    """A random order of the entries of each dimension, by its name, the seed and the salt."""

    def generator(d: Dimension) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{seed}{d.name}{salt}".encode()))

    return {
        d.var: torch.randperm(d.size, generator=generator(d))
        for d in dimensions
        if d.var is not None
    }


def permuted(
    graph: Graph,
    dimensions: Sequence[Dimension],
    seed: int,
    dtype: torch.dtype | None,
    hook: Callable[[str, Tensor], Tensor],
    consistent: bool = True,
) -> ProgramInterpreter:
    """The original program with the dimensions permuted in every tensor axis; not `consistent`:
    each tensor by a permutation of its own, which must show."""
    inference = graph.inference
    shared = random_orders(dimensions, seed)

    def shuffle(name: str, tensor: Tensor) -> Tensor:
        return cut_tensor(
            hook(name, tensor),
            inference.tensors[name],
            shared if consistent else random_orders(dimensions, seed, salt=name),
        ).detach()

    def reorder(node: fx.Node, value: Any) -> Any:
        for axis, term in enumerate(inference.generated.get(node, ())):
            if any(v in shared for v in variables(term)):
                value = value.index_select(axis, term_indices(term, shared).to(value.device))
        return value

    run = _Reordered(graph.program, dtype=dtype, tensor_hook=shuffle, node_hook=reorder)
    run.gathers, run.order = inference.gathers, shared
    return run


class _Reordered(ProgramInterpreter):
    """Runs a program on permuted tensors: what it selects by number is where it has gone."""

    gathers: Mapping[fx.Node, Gather]
    order: Kept

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        gather = self.gathers.get(self.node)
        if gather is None:
            return super().call_function(target, args, kwargs)
        index = gather_index(gather.base, gather.index, self.order)
        return args[0].index_select(gather.axis, index.to(args[0].device))

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)


def require(check: Check, blame: Callable[[], str]) -> Check:
    """Raise VerificationError, naming the culprit, when a check failed."""
    if not check.passed:
        raise VerificationError(
            f"the {check.name} check failed: relative error {check.error or 0:.2e} (limit "
            f"{check.limit:.0e}, judged in {check.dtype}); {blame()}. Nothing was written."
        )
    return check
