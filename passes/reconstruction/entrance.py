"""Where data enter a model: the layers that read them before any other layer has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from ...compiler.inference.rule import bound_arguments, op_name


def directions(
    value: fx.Node, width: int, layers: frozenset[str], tensors: Mapping[str, Tensor]
) -> int | None:
    """The directions in which a value of data, of some width, can move at most, by the rows of the
    tables that it is taken from. None behind a layer, by the names of `layers`: what one made of
    the data says little about them. `tensors`: the program's, by name."""
    seen: set[fx.Node] = set()
    rows, pending = 0, [value]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name in layers:
            return None
        if op_name(node.target) == "aten::embedding":
            table = tensors.get(str(bound_arguments(node)["weight"].target))
            rows += len(table) if table is not None else 0
        else:
            pending.extend(node.all_input_nodes)
    return min(rows, width) if rows else width
