"""Which dimension, and at which node, a failed check went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..cause import cause
from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..ir.drop import without
from ..ir.program import source_line
from ..ir.terms import Var, variables
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept, term_indices, zero_tensor
from .check import TOLERANCE
from .difference import relative_error
from .dropped import WithoutBranches
from .interpreter import ProgramInterpreter
from .judge import ends
from .oracles import permuted, random_orders, usable_rescaler
from .restricted import RestrictedInterpreter


def blame_permutation(graph: Graph, inputs: Sequence[Any], seed: int = 0) -> str:
    """Permute one dimension at a time; name the first that changes the output, and the node."""
    hook = usable_rescaler(graph, inputs)

    def difference(d: Dimension) -> fx.Node | None:
        shared = permuted(graph, [d], seed, torch.float64, hook)
        order = random_orders([d], seed)
        reference = ProgramInterpreter(graph.program, dtype=torch.float64, tensor_hook=hook)
        return _first_difference(graph, reference, shared, order, inputs)

    return _blame(graph, list(graph.prunable.values()), difference)


def blame_drop(graph: Graph, inputs: Sequence[Any]) -> str:
    """Drop the branches one by one, in order; name the first with which the two differ."""
    for count, drop in enumerate(graph.drops, 1):
        some = graph.drops[:count]
        try:
            program = without(graph.whole.program, some)
            found = ProgramInterpreter(program, dtype=torch.float64)(inputs)
        except Exception as error:  # whatever a program that lacks a node raises
            return f"without branch '{drop.name}' the graph does not run: {cause(error)}"
        expected = WithoutBranches(graph.whole.program, some, torch.float64)(inputs)
        if relative_error(found, expected) > TOLERANCE:
            return f"branch '{drop.name}', dropped at node {drop.result}, is to blame; exclude it"
    return "each of the drops passes alone"


def blame_plan(graph: Graph, planned: Kept, inputs: Sequence[Any], statistics: bool) -> str:
    """Cut one dimension at a time; name the first whose cut differs from its reference."""
    terms = graph.inference.tensors

    def difference(d: Dimension) -> fx.Node | None:
        assert d.var is not None
        own: dict[Var, Tensor] = {d.var: planned[d.var]}
        if statistics:
            reference: ProgramInterpreter = RestrictedInterpreter(graph, own, torch.float64)
        else:
            reference = ProgramInterpreter(
                graph.program,
                dtype=torch.float64,
                tensor_hook=lambda name, t: zero_tensor(t, terms[name], own),
            )
        small = ProgramInterpreter(rewrite(graph, own), dtype=torch.float64)
        return _first_difference(graph, reference, small, own, inputs)

    cut = [d for d in graph.prunable.values() if d.var in planned]
    return _blame(graph, cut, difference)


def _blame(
    graph: Graph, dimensions: list[Dimension], difference: Callable[[Dimension], fx.Node | None]
) -> str:
    for d in dimensions:
        try:
            node = difference(d)
        except Exception as error:
            return f"dimension '{d.name}' cannot be cut alone: {str(error).splitlines()[0]}"
        if node is not None:
            where = ", ".join(x for x in (node.name, source_line(node)) if x)
            return f"dimension '{d.name}' ({d.kind}) first differs at node {where}; exclude it"
    return "each dimension passes alone; they fail together"


def _first_difference(
    graph: Graph,
    reference: ProgramInterpreter,
    other: ProgramInterpreter,
    kept: Kept,
    inputs: Sequence[Any],
) -> fx.Node | None:
    """The first node whose value in `other` is not the reference's at the kept entries, if the
    outputs differ at all."""
    values: dict[str, Any] = {}

    def keep(node: fx.Node, value: Any) -> Any:
        values[node.name] = value.clone() if isinstance(value, Tensor) else value
        return value

    reference.node_hook = keep
    expected = reference(inputs)
    found: list[fx.Node] = []
    fixed = set(ends(graph, kept))  # what the checks compare too
    differ = False
    done: set[str] = set()
    nodes = {n.name: n for n in graph.program.graph.nodes}
    chained = other.node_hook

    def compare(node: fx.Node, value: Any) -> Any:
        nonlocal differ
        value = chained(node, value) if chained is not None else value
        done.add(node.name)
        original = nodes.get(node.name)
        if original is None or not isinstance(value, Tensor):
            return value
        if node.name in fixed and isinstance(values.get(node.name), Tensor):
            differ |= relative_error([value], [values[node.name]]) > TOLERANCE
        if found:
            return value
        terms = graph.inference.terms.get(original)
        if isinstance(terms, list) and isinstance(values.get(node.name), Tensor):
            wanted = values[node.name]
            for axis, term in enumerate(terms):
                if any(v in kept for v in variables(term)):
                    wanted = wanted.index_select(axis, term_indices(term, kept).to(wanted.device))
            if relative_error([value], [wanted]) > TOLERANCE:
                found.append(original)
        return value

    other.node_hook = compare
    try:
        actual = other(inputs)
    except Exception:
        calls = (n for n in graph.program.graph.nodes if n.op == "call_function")
        return found[0] if found else next((n for n in calls if n.name not in done), None)
    if relative_error(actual, expected) <= TOLERANCE and not differ:
        return None
    return found[0] if found else next(iter(reversed(list(graph.program.graph.nodes))))
