"""Dropped branches: a value replaced by an earlier one, and what nobody reads then removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..errors import PlanError
from .memory import memory_owners, written
from .program import Program

CONSTANT = "prunec_constant_"  # names a constant added behind a node that has no bias to take it


@dataclasses.dataclass(frozen=True, eq=False)
class Drop:
    """From now on the value of node `result` is that of node `source`, plus `constant`.

    `constant`: [size of the result's `axis`], None for nothing. `op`: what `result` calls, by which
    a plan is recognised as another program's. `name`: what people call it. `tensors`: what was read
    for it alone. `source` may be the result of an earlier drop: then it means what that one made.
    """

    name: str
    source: str
    result: str
    op: str
    constant: Tensor | None = None
    axis: int = -1
    tensors: tuple[str, ...] = ()


def without(program: Program, drops: Sequence[Drop]) -> Program:
    """The program with the drops made, in order. Nodes keep their names, tensors are the same
    objects; constants are new parameters. Raises PlanError for a drop of another program."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, mapping))
    tensors = dict(program.tensors)
    nodes = {n.name: n for n in graph.nodes}
    replaced: dict[str, str] = {}
    for drop in drops:
        source = nodes.get(resolved(drop.source, replaced))
        result = nodes.get(drop.result)
        if source is None or result is None or str(result.target) != drop.op:
            raise PlanError(
                f"the plan drops '{drop.name}' at {drop.result} ({drop.op}), which this program "
                "does not have; apply it to the model it was made for."
            )
        gone = dying(result, source)
        if drop.constant is not None:
            _add_constant(graph, tensors, result, source, drop)
        elif _needs_copy(graph, result, source):
            result.target, result.args, result.kwargs = torch.ops.aten.clone.default, (source,), {}
        else:
            result.replace_all_uses_with(source)
            gone = [result, *gone]
            replaced[result.name] = source.name
        order = {n: i for i, n in enumerate(graph.nodes)}
        for node in sorted(gone, key=order.__getitem__, reverse=True):
            graph.erase_node(node)
            nodes.pop(node.name, None)
    graph.lint()
    unread = _read(program.graph) - _read(graph)
    return dataclasses.replace(
        program,
        graph=graph,
        tensors={n: t for n, t in tensors.items() if n not in unread},
        aliases={n: a for n, a in program.aliases.items() if n not in unread},
        notes=list(program.notes),
    )


def resolved(name: str, replaced: Mapping[str, str]) -> str:
    """The node that a value now comes from."""
    while name in replaced:
        name = replaced[name]
    return name


def dying(result: fx.Node, source: fx.Node) -> list[fx.Node]:
    """The nodes that nothing reads any more once `result` no longer reads anything but `source`."""
    gone: set[fx.Node] = {result}
    pending = [x for x in result.all_input_nodes if x is not source]
    while pending:
        node = pending.pop()
        if node in gone or node is source or node.op not in ("call_function", "get_attr"):
            continue
        if all(user in gone for user in node.users):
            gone.add(node)
            pending += node.all_input_nodes
    gone.discard(result)
    return list(gone)


def _read(graph: fx.Graph) -> set[str]:
    return {str(n.target) for n in graph.nodes if n.op == "get_attr"}


def _add_constant(
    graph: fx.Graph, tensors: dict[str, Tensor], result: fx.Node, source: fx.Node, drop: Drop
) -> None:
    """Let the result be source + constant, under its own name."""
    assert drop.constant is not None
    value = result.meta["val"]
    shape = [1] * value.dim()
    shape[drop.axis] = -1
    name = CONSTANT + result.name
    learns = any(isinstance(t, nn.Parameter) for t in tensors.values())
    device = next((t.device for t in tensors.values()), drop.constant.device)
    data = drop.constant.detach().to(device=device, dtype=value.dtype, copy=True).reshape(shape)
    tensors[name] = nn.Parameter(data, learns)
    with graph.inserting_before(result):
        constant = graph.get_attr(name)
    constant.meta = {"val": value.new_empty(data.shape)}
    result.target = torch.ops.aten.add.Tensor
    result.args, result.kwargs = (source, constant), {}


def _needs_copy(graph: fx.Graph, result: fx.Node, source: fx.Node) -> bool:
    """Whether something later writes into the memory of either, which then would be one."""
    owners = memory_owners(graph)
    if owners[result] is owners[source]:
        return False
    pair = {owners[result], owners[source]}
    nodes = list(graph.nodes)
    later = nodes[nodes.index(result) + 1 :]
    return any(owners[base] in pair for n in later for base in written(n))
