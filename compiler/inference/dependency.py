"""The dependency graph: dimensions on one side, tensor axes and nodes on the other."""

from __future__ import annotations

from typing import Any

import networkx
from torch import fx

from ..ir.program import Program
from ..ir.terms import Var, variables
from .dimensions import Dimension
from .rule import Inference


def dependency_graph(
    program: Program, inference: Inference, dimensions: dict[str, Dimension]
) -> networkx.Graph:
    """A bipartite networkx graph.

    Nodes: `("dimension", name)` with kind, size, exact, blocked; `("tensor", name, axis)`;
    `("node", name)` with its op. Edges carry `how`: "sliced" (a tensor axis holds the dimension),
    "contracted", "statistic", or "carried" (a node's result has it on an axis). Connected
    components are the groups that share nothing.
    """
    graph = networkx.Graph()
    by_var: dict[Var, str] = {}
    for name, d in dimensions.items():
        graph.add_node(
            ("dimension", name),
            bipartite=0,
            kind=d.kind,
            size=d.size,
            exact=d.exact,
            blocked=str(d.blocked) if d.blocked else None,
        )
        if d.var is not None:
            by_var[d.var] = name
        for tensor, axis in d.members:
            graph.add_node(("tensor", tensor, axis), bipartite=1)
            graph.add_edge(("dimension", name), ("tensor", tensor, axis), how="sliced")

    def link(var: Var, node: fx.Node, how: str) -> None:
        if var in by_var:
            graph.add_node(("node", node.name), bipartite=1, op=str(node.target))
            graph.add_edge(("dimension", by_var[var]), ("node", node.name), how=how)

    for node in program.graph.nodes:
        if node.op == "call_function":
            for var in _carried(inference.terms.get(node)):
                link(var, node, "carried")
    for sink in inference.sinks:
        for var in variables(sink.term):
            link(var, sink.node, "contracted")
    for statistic in inference.statistics:
        for var in variables(statistic.term):
            link(var, statistic.node, "statistic")
    return graph


def _carried(terms: Any) -> list[Var]:
    if isinstance(terms, tuple):
        return [v for part in terms for v in _carried(part)]
    return [v for term in terms or () for v in variables(term)]
