"""Channel shuffles as explicit selections: view, transpose and view back permute one axis.

A shuffle is understood as a product of factors first, which grouped layers need. Where that fixes
what it touches (a cut inside a product, factors without a common refinement), the chain is replaced
by one index_select, and inference is run again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.program import Program, fake_value, hint, is_symbolic
from ..ir.terms import Concat, Fixed, Indexed, Term, Var, children, leaves, resolve
from .rule import SELECTION, Inference, bound_arguments, op_name

VIEWS = frozenset(("view", "reshape", "_unsafe_view", "flatten", "unflatten"))
MOVES = frozenset(("transpose", "permute", "swapaxes", "movedim", "contiguous", "clone"))


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """The chain of nodes from `source` to `last`: result entry i of `axis` is entry index[i]."""

    source: fx.Node
    last: fx.Node
    axis: int
    index: tuple[int, ...]


def frozen_shuffles(program: Program, inference: Inference) -> list[Shuffle]:
    """The shuffles of which some entry is fixed."""
    return [
        s
        for s in _shuffles(program)
        if any(isinstance(t, Fixed) for t in leaves(inference.terms[s.source][s.axis]))
    ]


def with_selections(program: Program, shuffles: list[Shuffle]) -> Program:
    """A copy of the program in which each of the shuffles is one index_select."""
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    copy.output(copy.graph_copy(program.graph, mapping))
    tensors = dict(program.tensors)
    for s in shuffles:
        last = mapping[s.last]
        index = torch.tensor(s.index, device=fake_value(last).device)
        with copy.inserting_before(last):
            node = copy.create_node(
                "call_function",
                torch.ops.aten.index_select.default,
                (mapping[s.source], s.axis),
                name=f"{last.name}_selected",
            )
        name = SELECTION + node.name
        tensors[name] = index
        with copy.inserting_before(node):
            constant = copy.get_attr(name)
        constant.meta["val"] = index
        node.args = (*node.args, constant)
        node.meta = dict(last.meta)
        last.replace_all_uses_with(node)
        while not last.users and last is not mapping[s.source]:
            before = last.all_input_nodes[0]
            copy.erase_node(last)
            last = before
    copy.lint()
    return dataclasses.replace(program, graph=copy, tensors=tensors)


def freedom(program: Program, inference: Inference) -> float:
    """How much of the weights something may be removed from: entries times the share of their axes'
    positions that are not fixed."""
    total = 0.0
    for name, terms in inference.tensors.items():
        for term in terms:
            if term.size:
                free = int(_free(term).sum())
                total += program.tensors[name].numel() * free / term.size
    return total


def _free(term: Term) -> Tensor:
    """Which positions along an axis belong to an entry of some variable (bool)."""
    term = resolve(term)
    if isinstance(term, (Var, Fixed)):
        return torch.full((term.size or 0,), isinstance(term, Var))
    if isinstance(term, Indexed):
        return _free(term.base)[torch.tensor(term.index)]
    parts = [_free(child) for child in children(term)]
    if isinstance(term, Concat):
        return torch.cat(parts)
    free = torch.zeros(1, dtype=torch.bool)
    for part in parts:
        free = (free[:, None] | part).reshape(-1)
    return free


def _shuffles(program: Program) -> Iterator[Shuffle]:
    for node in program.graph.nodes:
        found = _channel_shuffle(node) if _name(node) == "channel_shuffle" else _chain(node)
        if found is not None and found.index != tuple(range(len(found.index))):
            yield found


def _name(node: fx.Node) -> str:
    name = op_name(node.target) if node.op == "call_function" else ""
    return name.removeprefix("aten::") if name.startswith("aten::") else ""


def _channel_shuffle(node: fx.Node) -> Shuffle | None:
    given = bound_arguments(node)
    size = fake_value(node).shape[1]
    if not isinstance(size, int):
        return None
    order = torch.arange(size).reshape(given["groups"], -1).t().reshape(-1)
    return Shuffle(given["x"], node, 1, tuple(order.tolist()))


def _chain(last: fx.Node) -> Shuffle | None:
    """The shuffle that ends at a node: a view that splits an axis, moves among its pieces, and a
    view that joins them. No other node reads what is in between."""
    moves: list[fx.Node] = []
    node = last
    while _name(node) in MOVES | VIEWS:
        source = node.args[0]
        if not isinstance(source, fx.Node) or (node is not last and len(node.users) > 1):
            return None
        if node is not last and _name(node) in VIEWS:
            return _permuted_axis(source, node, moves[::-1], last)
        if (node is last) != (_name(node) in VIEWS):
            return None
        moves += [] if node is last else [node]
        node = source
    return None


def _permuted_axis(
    source: fx.Node, first: fx.Node, moves: list[fx.Node], last: fx.Node
) -> Shuffle | None:
    whole, split, result = (fake_value(n).shape for n in (source, first, last))
    if len(whole) != len(result) or not all(map(_same_size, whole, result)):
        return None
    before = _common(whole, split)
    after = _common(whole[before:][::-1], split[before:][::-1])
    divided = split[before : len(split) - after]
    if len(whole) - before - after != 1 or len(divided) < 2 or any(map(is_symbolic, divided)):
        return None
    pieces = [hint(size) or 0 for size in divided]
    order = torch.arange(math.prod(pieces)).reshape([1] * before + pieces + [1] * after)
    axes = torch.empty(list(range(1, len(split) + 1)), device="meta")  # axis k has size k + 1
    for move in moves:
        order, axes = _moved(move, order), _moved(move, axes)
    still = [k for k, size in enumerate(axes.shape) if size == k + 1]
    if not {*range(before), *range(len(split) - after, len(split))} <= {*still}:
        return None
    return Shuffle(source, last, before, tuple(order.reshape(-1).tolist()))


def _moved(move: fx.Node, value: Tensor) -> Tensor:
    if _name(move) in ("contiguous", "clone"):
        return value
    target: Any = move.target
    return target(value, *move.args[1:], **move.kwargs)


def _common(a: Any, b: Any) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if not _same_size(x, y):
            break
        count += 1
    return count


def _same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are one number, or one symbol."""
    if is_symbolic(a) or is_symbolic(b):
        return is_symbolic(a) and is_symbolic(b) and str(a) == str(b)
    return hint(a) == hint(b)
