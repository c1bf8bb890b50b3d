"""Rows put in the order of numbers, as mixtures of experts sort their tokens by expert.

Which number an entry has is an accident, and so is the order of the rows. It does no harm while
rows are worked on one by one and put back where they were; what makes groups of neighbouring rows
gives others once entries are renumbered: the dimension whose entries are numbered is fixed then.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from ..ir.program import fake_value, shape_of, source_line
from ..ir.terms import Reason, block
from .rule import Inference, Numbers, bound_arguments, op_name

TAKEN = frozenset("index index_select gather embedding take_along_dim".split())
PUT_BACK = frozenset(
    (
        "index_put index_copy index_add scatter scatter_add scatter_reduce index_reduce "
        "empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full"
    ).split()
)
NEIGHBOURS = frozenset(  # ops of which rows see each other and stay as many; others show by that
    (
        "roll flip cumsum cumprod logcumsumexp conv1d conv2d conv3d lstm gru avg_pool1d avg_pool2d "
        "max_pool1d max_pool2d"
    ).split()
)


def fix_orders(graph: fx.Graph, inference: Inference) -> None:
    """Fix what rows are sorted by where neighbouring rows meet afterwards; note which have them."""
    orders: dict[fx.Node, Numbers] = {}  # places of rows, in the order of these numbers
    rows: dict[fx.Node, tuple[Numbers, int]] = {}  # rows in that order, and how many there are
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = op_name(node.target).rpartition("::")[2].rstrip("_")
        numbers = _sorted_by(node, name, inference)
        if numbers is not None:
            orders[node] = numbers
            continue
        sources = node.all_input_nodes
        arranged = next((rows[n] for n in sources if n in rows), None)
        order = next((n for n in sources if n in orders), None)
        if name in TAKEN:
            if order is not None and arranged is None and order is not node.args[0]:
                count = max((s or 0 for s in shape_of(fake_value(order))), default=0)
                rows[node] = orders[order], count
        elif name in PUT_BACK:
            continue
        elif arranged is not None:
            if name in NEIGHBOURS or not all(arranged[1] in shape for shape in _shapes(node)):
                where = Reason("rows sorted by its numbers meet", node.name, source_line(node))
                block(arranged[0].term, where)
            rows[node] = arranged
        elif order is not None:
            orders[node] = orders[order]
    inference.arranged.update((node, numbers) for node, (numbers, _) in rows.items())


def _sorted_by(node: fx.Node, name: str, inference: Inference) -> Numbers | None:
    """What is numbered by the values that a node sorts; for `sort` of its second result."""
    source: Any = node
    if node.target is operator.getitem:
        source = node.args[0]
        if node.args[1] != 1 or op_name(source.target) != "aten::sort":
            return None
    elif name != "argsort":
        return None
    numbers = inference.numbers.get(bound_arguments(source).get("x"))  # type: ignore[arg-type]
    return numbers if isinstance(numbers, Numbers) and numbers.what == "entries" else None


def _shapes(node: fx.Node) -> Iterator[list[int | None]]:
    value = fake_value(node)
    for x in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(x, Tensor):
            yield shape_of(x)
