"""Which nodes read a tensor, and whether they feed one another."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from ...compiler.inference.rule import op_name

TRANSPOSED = ("aten::t", "aten::transpose", "aten::numpy_T", "aten::mT")


def tensor_uses(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Per tensor name the nodes that read it, through a transposition."""
    uses: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        for user in node.users:
            turned = op_name(user.target) in TRANSPOSED
            uses.setdefault(str(node.target), []).extend(user.users if turned else [user])
    return uses


def follow(nodes: Collection[fx.Node]) -> bool:
    """Whether one of the nodes depends on another."""
    if len(nodes) < 2:
        return False
    below: set[fx.Node] = set()
    for node in next(iter(nodes)).graph.nodes:
        fed = any(x in below for x in node.all_input_nodes)
        if fed and node in nodes:
            return True
        if fed or node in nodes:
            below.add(node)
    return False
