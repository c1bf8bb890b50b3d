"""Integer tensors that are the same on every call: index buffers, and what comes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..ir.memory import memory_owners, written
from ..ir.program import Program, fake_value

DETACH = torch.ops.aten.detach_.default
LARGEST = 1 << 14  # entries: an index into a width, not a table of positions


def integer_constants(program: Program) -> dict[fx.Node, Tensor]:
    """The values of small integer tensors that depend on nothing but the model's buffers and
    literals; what an op writes to is not constant."""
    owners = memory_owners(program.graph)
    writers = (n for n in program.graph.nodes if n.target is not DETACH)
    changed = {owners[base] for n in writers for base in written(n)}
    names = {n.target for n in changed if n.op == "get_attr"}
    found: dict[fx.Node, Tensor] = {}
    for node in program.graph.nodes:
        value = fake_value(node)
        if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32):
            continue
        if owners[node] in changed or not all(isinstance(s, int) for s in value.shape):
            continue
        if value.numel() > LARGEST:
            continue
        if node.op == "get_attr":
            tensor = program.tensors.get(str(node.target))
            if tensor is not None and tensor.device.type != "meta" and node.target not in names:
                found[node] = tensor.detach().cpu()
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes):
            result = _evaluate(node, found)
            if result is not None:
                found[node] = result
    return found


def _evaluate(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor | None:
    if node.target is DETACH:  # in place by its name; it writes nothing
        return known[node.all_input_nodes[0]]
    target: Any = node.target
    tags = getattr(target, "tags", (torch.Tag.nondeterministic_seeded,))
    if torch.Tag.nondeterministic_seeded in tags:
        return None
    given: Any = map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
    args, kwargs = given
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    try:
        result = target(*args, **kwargs)
    except Exception:  # an op that cannot be run here is no constant
        return None
    return result if isinstance(result, Tensor) else None
