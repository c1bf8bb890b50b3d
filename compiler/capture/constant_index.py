"""x[..., [-2], :] takes consecutive entries by a literal list: a slice, which inference can cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.memory import memory_owners, written
from ..ir.program import fake_value

COPIES = (
    torch.ops.aten.lift_fresh_copy.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.detach_.default,
    torch.ops.aten.alias.default,
)


def slice_literal_lists(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
    """Turn an index by one constant list of ascending neighbours into a slice.

    A slice shares memory where an index copies: what is written to later is left as it is.
    """
    owners = memory_owners(graph)
    changing = {owners[base] for n in graph.nodes for base in written(n)}
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.index.Tensor):
        x, indices = node.args
        given = [axis for axis, i in enumerate(indices) if i is not None]
        if len(given) != 1 or {owners[x], node} & changing:
            continue
        axis = given[0]
        entries = _entries(indices[axis], tensors)
        size = fake_value(x).shape[axis]
        if not entries or not isinstance(size, int):
            continue
        first = entries[0] % size
        if [i % size for i in entries] == list(range(first, first + len(entries))):
            node.target = torch.ops.aten.slice.Tensor
            node.args = (x, axis, first, first + len(entries))


def _entries(node: Any, tensors: Mapping[str, Tensor]) -> list[int] | None:
    """The numbers of a constant list, None for any other index."""
    while node.op == "call_function" and node.target in COPIES:
        node = node.args[0]
    value = tensors.get(str(node.target)) if node.op == "get_attr" else None
    if value is None or value.dim() != 1 or value.dtype != torch.int64:
        return None
    if isinstance(value, torch.nn.Parameter) or not str(node.target).startswith("lifted_tensor"):
        return None
    return value.tolist() if value.device.type != "meta" else None
