"""A torch.fx.GraphModule that is called, copied and pickled like the model it came from."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

import torch
from torch import fx, nn

from ..ir.module_paths import add_aliases, at
from .call_code import CallCodeGen, call_of
from .graph_rows import graph_of, rows_of
from .guarded_call import check_call, is_traced

_OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_KEPT_META = ("nn_module_stack", "stack_trace")


class EmittedGraph(fx.GraphModule):
    """A GraphModule that owns all of a module tree, whether its graph refers to a part or not.

    torch's own copy makes buffers at the top persistent, and its pickle traces the generated code
    anew, which loses the result's class and bakes random numbers: here the nodes are the state.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name)
        self.graph = graph  # before a module of that name
        for part in (*_OWN, "training"):
            self.__dict__[part] = copy.copy(root.__dict__[part])
        add_aliases(self, getattr(graph._codegen, "aliases", {}))

    def target_of(self, path: str) -> str:
        """The target by which a node of the graph refers to what is registered under a path."""
        assert isinstance(self.graph._codegen, CallCodeGen)
        alias = self.graph._codegen.target_of(path)
        add_aliases(self, self.graph._codegen.aliases)
        return alias

    def _check_call(self, flat: tuple[Any, ...]) -> None:
        if not is_traced():
            check_call(getattr(self.graph._codegen, "call", None), flat)

    def _deepcopy_init(self) -> Any:
        return EmittedGraph.__init__

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        for spec in (self._in_spec, self._out_spec):
            memo[id(spec)] = spec
        return super().__deepcopy__(memo)

    def __reduce__(self) -> Any:
        root = nn.Module()
        for part in (*_OWN, "training"):
            root.__dict__[part] = self.__dict__[part]
        foreign: list[Any] = []
        codegen = self.graph._codegen
        assert isinstance(codegen, CallCodeGen)
        nodes = list(self.graph.nodes)
        rows = rows_of(self.graph, codegen.path_of, body_names(self), foreign)
        labels = [(node.name, node.meta) for node in nodes]
        return _restore, (root, rows, labels, codegen.to_rows(foreign), foreign)


def body_names(module: fx.GraphModule) -> set[str]:
    """The targets of a graph that are sub-graphs."""
    found = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return {name for name in found if isinstance(at(module, name), nn.Module)}


def _restore(
    root: nn.Module,
    rows: list[list[Any]],
    labels: list[tuple[str, Any]],
    call: dict[str, Any],
    foreign: list[Any],
) -> EmittedGraph:
    codegen = call_of(call, foreign)
    graph = graph_of(
        rows,
        dict.fromkeys(("tensor", "layer", "body"), AnyName()),
        codegen.target_of,
        torch.device,
        namespaces=AnyName(),
        foreign=foreign,
        names=[name for name, _ in labels],
    )
    for node, (_, meta) in zip(graph.nodes, labels, strict=True):
        node.meta = meta
    graph.set_codegen(codegen)
    return EmittedGraph(root, graph)


class AnyName(Container[str]):
    """Holds every name: for what comes from a pickle, which is trusted."""

    def __contains__(self, name: object) -> bool:
        return True


def plain_meta(node: fx.Node) -> dict[str, Any]:
    """What a node's meta says of its origin, without fake values and what belongs to a trace."""
    return {key: node.meta[key] for key in _KEPT_META if key in node.meta}
