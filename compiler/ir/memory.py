"""Which values share memory, and which of them an op writes to: by the op's schema."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

# ops that write to operands which their schema does not mark, where a flag is set
RUNNING = {
    "aten::batch_norm": "training",
    "aten::native_batch_norm": "training",
    "aten::instance_norm": "use_input_stats",
}


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The operands an op writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return ()
    given = _given(node, schema)
    flag = RUNNING.get(schema.name)
    found: list[fx.Node] = []
    for argument, value in given:
        marked = argument.alias_info is not None and argument.alias_info.is_write
        if flag is not None and argument.name.startswith("running_"):
            marked = any(a.name == flag and v is True for a, v in given)
        found += [x for x in _nodes(value) if marked and x not in found]
    return tuple(found)


def mutates(node: fx.Node) -> bool:
    """Whether an op writes to an operand."""
    return bool(written(node))


def memory_owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node the one whose memory its value may be a view of; a node of its own memory is
    its own."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = _viewed(node)
        owners[node] = owners[source] if source is not None else node
    return owners


def _viewed(node: fx.Node) -> fx.Node | None:
    if node.target is operator.getitem:
        return next(_nodes(node.args[0]), None)
    schema = getattr(node.target, "_schema", None)
    alias = schema.returns[0].alias_info if schema is not None and schema.returns else None
    if alias is None:
        return None
    given = _given(node, schema)
    same = (v for a, v in given if a.alias_info and a.alias_info.before_set & alias.before_set)
    first = next(same, node.args[0] if node.args else None)
    return next(_nodes(first), None)


def _given(node: fx.Node, schema: Any) -> list[tuple[Any, Any]]:
    """The schema's arguments with the values that the call gives them."""
    arguments = schema.arguments
    by_place = list(zip(arguments, node.args, strict=False))
    return by_place + [(a, node.kwargs[a.name]) for a in arguments if a.name in node.kwargs]


def _nodes(value: Any) -> Iterator[fx.Node]:
    for x in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(x, fx.Node):
            yield x
