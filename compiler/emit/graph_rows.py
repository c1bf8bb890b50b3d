"""A graph as rows of plain values, and back: one form for pickles and for artifacts.

["input"], ["tensor", path], ["layer", path, args, kwargs], ["body", path], ["call", operator, args,
kwargs], ["output", value]; a row is referred to by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import ArtifactError
from .row_targets import target_name, target_of
from .row_values import from_row, refused, to_row

Rows = list[list[Any]]
ROW_LIMIT = 500_000
_LENGTHS = {"input": 1, "tensor": 2, "body": 2, "output": 2, "layer": 4, "call": 4}


def rows_of(
    graph: fx.Graph, path: Callable[[str], str], bodies: Container[str], foreign: list[Any] | None
) -> Rows:
    """The rows of a graph. `path`: the name that a target stands for. `bodies`: the targets that
    are sub-graphs. `foreign` as in `to_row`. Raises ArtifactError for what has no row."""
    index: dict[fx.Node, int] = {}
    rows: Rows = []
    for node in graph.nodes:
        arguments = [to_row(list(node.args), index, foreign), to_row(node.kwargs, index, foreign)]
        if node.op == "placeholder":
            row: list[Any] = ["input"]
        elif node.op == "get_attr":
            target = str(node.target)
            row = ["body" if target in bodies else "tensor", path(target)]
        elif node.op == "call_module":
            row = ["layer", path(str(node.target)), *arguments]
        elif node.op == "output":
            row = ["output", arguments[0][0]]
        else:
            row = ["call", _name(node, foreign), *arguments]
        index[node] = len(rows)
        rows.append(row)
    return rows


def _name(node: fx.Node, foreign: list[Any] | None) -> Any:
    name = target_name(node.target) if node.op == "call_function" else None
    if name is not None:
        return name
    if foreign is None:
        raise ArtifactError(
            f"the graph calls {str(node.target)[:120]}, which no artifact holds: use torch's own "
            "operators."
        )
    foreign.append((node.op, node.target))
    return {"foreign": len(foreign) - 1}


def graph_of(
    rows: Any,
    known: Mapping[str, Container[str]],
    alias: Callable[[str], str],
    place: Callable[[str], torch.device],
    *,
    namespaces: Container[str] = (),
    foreign: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
) -> fx.Graph:
    """The graph of `rows_of`'s rows, with nodes named anew unless `names` says how.

    `known`: the paths that a "tensor", "layer" or "body" may name. `alias`: the target that stands
    for a path. `place` as in `from_row`. Raises ArtifactError.
    """
    if not isinstance(rows, list) or not 0 < len(rows) <= ROW_LIMIT:
        raise refused("no rows, or too many")
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for i, row in enumerate(rows):
        kind = row[0] if isinstance(row, list) and row else None
        if not isinstance(kind, str) or _LENGTHS.get(kind) != len(row):
            raise refused(f"the row {str(row)[:60]!r}")
        if (kind == "output") != (i == len(rows) - 1):
            raise refused("an output before its end, or none")
        name = names[i] if names is not None else f"n{i}"
        parts = [from_row(x, nodes, place, foreign or ()) for x in row[2:]]
        if kind in ("layer", "call") and not (type(parts[0]) is list and type(parts[1]) is dict):
            raise refused(f"the row {str(row)[:60]!r}")
        if kind == "input":
            node = graph.placeholder(name)
        elif kind == "output":
            node = graph.output(from_row(row[1], nodes, place, foreign or ()))
        elif kind == "call":
            op, target = "call_function", row[1]
            if foreign is not None and isinstance(target, dict):
                op, target = foreign[target["foreign"]]
            else:
                target = target_of(target, namespaces)
            node = graph.create_node(op, target, tuple(parts[0]), parts[1], name)
        else:
            if not isinstance(row[1], str) or row[1] not in known[kind]:
                raise refused(f"a {kind} {str(row[1])[:60]!r} that it does not hold")
            op = "call_module" if kind == "layer" else "get_attr"
            args, kwargs = (tuple(parts[0]), parts[1]) if parts else ((), {})
            node = graph.create_node(op, alias(row[1]), args, kwargs, name)
        nodes.append(node)
    return graph
