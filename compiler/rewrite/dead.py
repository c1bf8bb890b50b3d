"""What is already zero: entries that can go without changing the function, constants folded.

An entry of an exact dimension is dead when, at every node that sums over it, its weights are zero,
or its value is a constant whose contribution is one vector at all positions (then that vector goes
to the consumer's bias). Where a constant cannot be folded, the entry stays and the report says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..inference.rule import Sink, bound_arguments, op_name
from ..ir.terms import Var, variables
from .folds import Fold
from .known_values import Known, known_values
from .slicing import Kept, term_labels, zero_tensor


@dataclasses.dataclass
class DeadEntries:
    """`removed`: dead entries per variable; `folds`: what their constants become; `stayed`: per
    dimension name, why entries that look dead were kept."""

    removed: dict[Var, Tensor] = dataclasses.field(default_factory=dict)
    folds: list[Fold] = dataclasses.field(default_factory=list)
    stayed: dict[str, str] = dataclasses.field(default_factory=dict)


def find_dead(graph: Graph, planned: Kept) -> DeadEntries:
    """The dead entries of the masked model (planned removals count as zero).

    At least one entry of a dimension always stays. Statistics keep their entries: under a
    LayerNorm a zero channel still counts.
    """
    terms = graph.inference.tensors

    def masked(name: str, tensor: Tensor) -> Tensor:
        return zero_tensor(tensor, terms[name], planned)

    known = known_values(graph.program, masked)
    found = DeadEntries()
    removed: dict[Var, Tensor] = {}
    while True:
        grown = _round(graph, known, planned, removed, found)
        if all(torch.equal(grown.get(v, removed[v]), removed[v]) for v in removed) and set(
            grown
        ) == set(removed):
            break
        removed = grown
    found.removed = {v: gone.nonzero().reshape(-1) for v, gone in removed.items() if gone.any()}
    found.folds = _folds(graph, known, planned, found.removed)
    return found


def _round(
    graph: Graph,
    known: dict[fx.Node, Known | None],
    planned: Kept,
    removed: dict[Var, Tensor],
    found: DeadEntries,
) -> dict[Var, Tensor]:
    gone_rows = {v: (~gone).nonzero().reshape(-1) for v, gone in removed.items() if gone.any()}
    by_var: dict[Var, list[Sink]] = {}
    for sink in graph.inference.sinks:
        for var in variables(sink.term):
            by_var.setdefault(var, []).append(sink)
    result: dict[Var, Tensor] = {}
    for d in graph.prunable.values():
        var = d.var
        assert var is not None
        dead = torch.ones(d.size, dtype=torch.bool)
        reasons: list[str] = []
        looks = torch.zeros(d.size, dtype=torch.bool)
        for sink in by_var.get(var, ()):
            okay, suspect, why = _dead_at(graph, known, sink, var, gone_rows)
            dead &= okay
            looks |= suspect & ~okay
            if why and bool((suspect & ~okay).any()):
                reasons.append(why)
        if not by_var.get(var):
            dead[:] = False
        if d.statistics:
            if bool(dead.any()):
                found.stayed[d.name] = f"{int(dead.sum())} zero entries stay: {d.statistics[0]}"
            dead[:] = False
        elif bool(looks.any()) and reasons:
            found.stayed[d.name] = f"{int(looks.sum())} constant entries stay: {reasons[0]}"
        if var in planned:
            outside = torch.ones(d.size, dtype=torch.bool)
            outside[planned[var]] = False
            dead &= ~outside
        result[var] = _leave_some(d, dead, planned)
    return {v: gone for v, gone in result.items() if gone.any()}


def _leave_some(d: Dimension, dead: Tensor, planned: Kept) -> Tensor:
    """Keep the minimum: the first dead entries come back."""
    assert d.var is not None
    alive = len(planned[d.var]) if d.var in planned else d.size
    short = d.minimum - (alive - int(dead.sum()))
    if short > 0:
        dead = dead.clone()
        dead[dead.nonzero().reshape(-1)[:short]] = False
    return dead


def _dead_at(
    graph: Graph, known: dict[fx.Node, Known | None], sink: Sink, var: Var, gone_rows: Kept
) -> tuple[Tensor, Tensor, str]:
    """(entries without effect at this sink, entries that are constant there, why those differ)."""
    none = torch.zeros(var.size, dtype=torch.bool)
    if sink.weight is None:
        okay = none.clone()
        for node, axis in sink.operands:
            value = known.get(node)
            if value is not None:
                okay |= _all_true(graph, node, axis, var, value.zero())
        return okay, none, ""
    weight = known.get(sink.weight)
    okay = none.clone()
    if weight is not None and weight.mask is None:
        place = next(((n, a) for n, a in sink.operands if n is sink.weight), None)
        if place is not None:
            terms = graph.inference.terms[sink.weight]
            zero = zero_tensor(weight.value, terms, gone_rows) == 0
            okay |= _all_true(graph, *place, var, zero)
    suspect, why = none, ""
    for node, axis in sink.operands:
        value = known.get(node)
        if node is sink.weight or value is None:
            continue
        if _borderless(sink.node):
            okay |= _all_true(graph, node, axis, var, _uniform(value, axis))
        else:
            okay |= _all_true(graph, node, axis, var, value.zero())
            suspect = _all_true(graph, node, axis, var, value.where())
            why = f"what they add at {sink.node.name} is not one vector (padding, or the op)"
    return okay, suspect, why


def _all_true(graph: Graph, node: fx.Node, axis: int, var: Var, mask: Tensor) -> Tensor:
    """Per entry of var: whether the mask holds at all positions that belong to it."""
    terms = graph.inference.terms[node]
    axis %= len(terms)
    others = [a for a in range(mask.dim()) if a != axis]
    flat = mask.all(dim=others) if others else mask
    labels = term_labels(terms[axis], var).to(flat.device)
    bad = labels[(~flat) & (labels >= 0)]
    result = torch.ones(var.size, dtype=torch.bool)
    result[bad.cpu()] = False
    return result


def _uniform(known: Known, axis: int) -> Tensor:
    """Known, and the same number at every position of the other axes."""
    if not known.value.numel():
        return known.where()
    first = known.value.movedim(axis, 0).reshape(known.value.shape[axis], -1)[:, 0]
    shape = [1] * known.value.dim()
    shape[axis] = -1
    return known.where() & (known.value == first.reshape(shape))


def _borderless(node: fx.Node) -> bool:
    """Whether a constant input contributes the same vector at every position of the result."""
    name = op_name(node.target).removeprefix("aten::")
    if name in ("linear", "matmul", "mm", "addmm"):
        return True
    if name in ("conv1d", "conv2d", "conv3d"):
        padding = bound_arguments(node).get("padding")
        values = padding if isinstance(padding, (list, tuple)) else [padding]
        return all(p in (0, "valid", None) for p in values)
    return False


def _folds(
    graph: Graph, known: dict[fx.Node, Known | None], planned: Kept, removed: dict[Var, Tensor]
) -> list[Fold]:
    folds: list[Fold] = []
    done: set[fx.Node] = set()
    for sink in graph.inference.sinks:
        gone = [v for v in variables(sink.term) if v in removed]
        if not gone or sink.weight is None or sink.node in done:
            continue
        vector = _contribution(graph, known, sink, gone, removed)
        if vector is not None and bool((vector[1] != 0).any()):
            folds.append(Fold(sink.node.name, vector[0], vector[1]))
            done.add(sink.node)
    return folds


def _contribution(
    graph: Graph,
    known: dict[fx.Node, Known | None],
    sink: Sink,
    gone: Sequence[Var],
    removed: dict[Var, Tensor],
) -> tuple[int, Tensor] | None:
    """(result axis, vector) that the removed entries add to every position of the result."""
    place = next(((n, a) for n, a in sink.operands if n is not sink.weight), None)
    if place is None or known.get(place[0]) is None:
        return None
    node, axis = place
    value = known[node]
    weight = known.get(sink.weight) if sink.weight is not None else None
    assert value is not None
    assert weight is not None
    terms = graph.inference.terms[node]
    axis %= len(terms)
    select = torch.zeros(value.value.shape[axis], dtype=torch.bool)
    for var in gone:
        labels = term_labels(terms[axis], var)
        select |= torch.isin(labels, removed[var]).any(0)
    shape = [1] * value.value.dim()
    shape[axis] = -1
    constants = torch.where(
        value.where() & select.reshape(shape).to(value.value.device),
        value.value,
        torch.zeros_like(value.value),
    )

    def argument(n: fx.Node) -> Any:
        if n is node:
            return constants
        if n is sink.weight:
            return weight.value
        return None  # the bias counts once, in the consumer itself

    arguments: Any = map_arg((sink.node.args, sink.node.kwargs), argument)
    args, kwargs = arguments
    name = op_name(sink.node.target)
    if name in ("aten::linear", "aten::conv1d", "aten::conv2d", "aten::conv3d"):
        result = sink.node.target(*args, **kwargs)  # type: ignore[operator]
    elif name in ("aten::matmul", "aten::mm"):
        result = torch.matmul(args[0], args[1])
    elif name == "aten::addmm":
        result = torch.matmul(args[1], args[2]) * kwargs.get("alpha", 1)
    else:
        return None
    if not result.numel():  # a layer without outputs
        return None
    out = result.dim() - 1
    if name in ("aten::matmul", "aten::mm") and sink.node.args[0] is sink.weight:
        out -= min(value.value.dim(), 2) - 1  # a weight on the left makes the rows
    if "conv" in name:
        out = result.dim() - (weight.value.dim() - 2) - 1  # an unbatched result has no axis before
    flat = result.movedim(out, 0).reshape(result.shape[out], -1)
    return out, flat[:, 0]
