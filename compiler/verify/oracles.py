"""The three checks of every compile, and what they say when they fail.

Zero mask: dense == masked original, for exact dimensions. Restricted statistics: dense == original
over kept entries, for all. Permutation: reordering a dimension changes nothing; it tests the
inference itself, and needs no plan.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..inference.rule import Gather
from ..ir.program import Program
from ..ir.terms import Var, variables
from ..rewrite.slicing import Kept, cut_tensor, gather_index, term_indices, zero_tensor
from .check import Check
from .interpreter import ProgramInterpreter, TensorHook
from .judge import Inputs, Trial, ends, judge, working_dtype
from .rescale import rescaler
from .restricted import RestrictedInterpreter, supported


def zero_mask(
    graph: Graph,
    dense: Program,
    planned: Kept,
    inputs: Inputs,
    removed: Collection[Var] = (),
    folded: Collection[str] = (),
) -> Check:
    """Dense program against the original with every slice of a planned entry set to zero.

    `removed`: what the dense program lacks besides; `folded`: nodes whose constants it adds
    elsewhere.
    """
    terms = graph.inference.tensors

    def masked(kept: Kept, dtype: torch.dtype | None) -> ProgramInterpreter:
        return ProgramInterpreter(
            graph.program,
            dtype=dtype,
            tensor_hook=lambda name, t: zero_tensor(t, terms[name], kept),
        )

    cut = {*planned, *removed}
    wrong = {var: _other_half(var, planned) for var in cut}

    def trial(dtype: torch.dtype | None) -> Trial:
        dense_run = ProgramInterpreter(dense, dtype=dtype)
        return Trial(dense_run, masked(planned, dtype), masked(wrong, dtype))

    points = _shared(ends(graph, cut, folded), dense)
    return judge("zero mask", graph.program, inputs, trial, points)


def restricted_statistics(
    graph: Graph,
    dense: Program,
    planned: Kept,
    inputs: Inputs,
    removed: Collection[Var] = (),
    folded: Collection[str] = (),
) -> Check:
    """Dense program against the original graph with statistics over kept entries; `removed` and
    `folded` as for `zero_mask`."""
    wrong = {var: _other_half(var, planned) for var in planned}

    def trial(dtype: torch.dtype | None) -> Trial:
        dense_run = ProgramInterpreter(dense, dtype=dtype)
        references = (RestrictedInterpreter(graph, kept, dtype) for kept in (planned, wrong))
        return Trial(dense_run, *references)

    points = _shared(ends(graph, {*planned, *removed}, folded), dense)
    return judge("restricted statistics", graph.program, inputs, trial, points)


def _other_half(var: Var, planned: Kept) -> Tensor:
    """Every second entry, which is not what is planned: a mask that is wrong on purpose."""
    half = torch.arange(0, var.size, 2)
    kept = planned.get(var)
    return half + 1 if kept is not None and var.size % 2 == 0 and torch.equal(half, kept) else half


def _shared(points: Sequence[str], dense: Program) -> list[str]:
    names = {n.name for n in dense.graph.nodes}
    return [name for name in points if name in names]


def unsupported_statistics(graph: Graph, planned: Kept) -> list[fx.Node]:
    """Statistic nodes over planned dimensions for which there is no reference."""
    return [
        s.node
        for s in graph.inference.statistics
        if any(v in planned for v in variables(s.term)) and not supported(s.node)
    ]


def permutation(graph: Graph, inputs: Inputs, seed: int = 0) -> Check:
    """A random permutation of every dimension, on rescaled weights, must change nothing.

    On the weights as they are where the rescaled ones do not see a permutation that is wrong.
    """
    dimensions = [d for d in graph.prunable.values() if d.var is not None]
    if not dimensions:
        return Check("permutation", None, "-", 0, skipped="no prunable dimension")
    points = ends(graph, [d.var for d in dimensions if d.var is not None])

    def on(hook: TensorHook) -> Check:
        def trial(dtype: torch.dtype | None) -> Trial:
            plain = ProgramInterpreter(graph.program, dtype=dtype, tensor_hook=hook)
            right, wrong = (
                permuted(graph, dimensions, seed, dtype, hook, consistent=c) for c in (True, False)
            )
            return Trial(right, plain, wrong)

        return judge("permutation", graph.program, inputs, trial, points)

    check = on(usable_rescaler(graph, inputs[0]))
    return check if not check.unproven else on(lambda name, t: t)


def usable_rescaler(graph: Graph, flat: Sequence[Any]) -> TensorHook:
    """The rescaled stand-in, unless with it outputs are not finite that are so without."""
    hook, dtype = rescaler(graph.program), working_dtype(graph.program)

    def finite(hook: TensorHook | None) -> list[int]:
        values = ProgramInterpreter(graph.program, dtype=dtype, tensor_hook=hook)(flat)
        floats = (v for v in values if isinstance(v, Tensor) and v.is_floating_point())
        return [int(torch.isfinite(v).sum()) - v.numel() for v in floats]

    changed = finite(hook)
    if not any(changed) or all(a >= b for a, b in zip(changed, finite(None), strict=True)):
        return hook
    return lambda name, t: t


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
