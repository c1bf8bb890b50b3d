"""A torch.fx.GraphModule that is called, copied and pickled like the model it came from."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.fx.node import map_aggregate

from ..ir.call_spec import CallSpec
from ..ir.program import Program
from .guarded_call import check_call, is_traced, with_check

_OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_KEPT_META = ("nn_module_stack", "stack_trace")


class EmittedGraph(fx.GraphModule):
    """A GraphModule that owns all of a module tree, whether its graph refers to a part or not.

    torch's own copy makes buffers at the top persistent, and its pickle traces the generated code
    anew, which loses the result's class and bakes random numbers: here the nodes are the state.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        for part in _OWN:
            own, given = getattr(self, part), getattr(root, part)
            if own is not given:
                own.clear()
                own.update(given)

    def _deepcopy_init(self) -> Any:
        return EmittedGraph.__init__

    def _check_call(self, flat: tuple[Any, ...]) -> None:
        if not is_traced():
            check_call(getattr(self.graph._codegen, "call", None), flat)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        for spec in (self._in_spec, self._out_spec):
            memo[id(spec)] = spec
        return super().__deepcopy__(memo)

    def __reduce__(self) -> Any:
        root = nn.Module()
        for part in (*_OWN, "training"):
            root.__dict__[part] = self.__dict__[part]
        codegen = self.graph._codegen
        assert isinstance(codegen, CallCodeGen)
        names, *specs = codegen.pytree_info
        call = names, [_spec_data(spec) for spec in specs], codegen.header, codegen.call
        return _restore, (root, _rows(self.graph), call)


class CallCodeGen(_PyTreeCodeGen):
    """Code that takes the model's arguments and returns its type of result. `header`: forward's
    parameters as source text, in the model's order and with defaults for captured constants.
    `call`: what every call is checked against."""

    def __init__(self, info: _PyTreeInfo, header: str, call: CallSpec | None = None) -> None:
        super().__init__(info)
        self.header = header
        self.call = call

    def __deepcopy__(self, memo: dict[int, Any]) -> CallCodeGen:
        return copy.copy(self)  # specs are immutable, and torch warns when one is copied

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        source = super().gen_fn_def(*args, **kwargs)
        start, end = source.index("(") + 1, source.index(")")
        names = [str(name).split(":")[0].strip() for name in args[0]]
        return with_check(f"{source[:start]}{self.header}{source[end:]}", names)


def call_codegen(program: Program) -> CallCodeGen:
    """The calling convention of a program: its model's, restricted to the captured arguments."""
    names = list(program.argument_names)
    return CallCodeGen(
        _PyTreeInfo(names, program.in_spec, program.out_spec),
        _header(program, names),
        program.call,
    )


def _header(program: Program, names: list[str]) -> str:
    """Where forward has an argument that was not captured, those after it are keyword-only."""
    positional = program.in_spec.child(0).num_children
    keywords = list(program.in_spec.child(1).context or [])
    values = dict(zip(names[:positional], program.args, strict=False))
    values |= {
        n: program.kwargs[k]
        for n, k in zip(names[positional:], keywords, strict=True)
        if k in program.kwargs
    }
    order = _parameters(program.source)
    named = sorted(names[positional:], key=lambda n: order.index(n) if n in order else len(order))
    follows = order[positional:] if set(names[:positional]) <= set(order) else named
    parts, marked, defaults = ["self", *names[:positional]], False, False
    for i, name in enumerate(named):
        constant = isinstance(values.get(name, ...), (bool, int, str, type(None)))
        if not marked and (follows[i : i + 1] != [name] or (defaults and not constant)):
            parts.append("*")
            marked = True
        defaults |= constant
        parts.append(f"{name}={values[name]!r}" if constant else name)
    return ", ".join(parts)


def _parameters(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]


@dataclasses.dataclass(frozen=True)
class _Reference:
    """Stands for a node among the arguments of another."""

    name: str


def _rows(graph: fx.Graph) -> list[tuple[Any, ...]]:
    def reference(x: Any) -> Any:
        return _Reference(x.name) if isinstance(x, fx.Node) else x

    rows: list[tuple[Any, ...]] = []
    for node in graph.nodes:
        args, kwargs = map_aggregate((node.args, dict(node.kwargs)), reference)  # type: ignore[misc]
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            target = ("operator", *str(target).split("."))
        elif isinstance(target, torch._ops.HigherOrderOperator):
            target = ("operator", "higher_order", target.name())
        rows.append((node.op, node.name, target, args, kwargs, node.meta))
    return rows


def _spec_data(spec: Any) -> Any:
    """A TreeSpec as plain data: torch's own warns whenever one is unpickled."""
    if spec.is_leaf():
        return None
    return spec.type, spec.context, [_spec_data(child) for child in spec.children()]


def _spec(data: Any) -> pytree.TreeSpec:
    if data is None:
        return pytree.tree_structure(0)
    kind, context, children = data
    return pytree.TreeSpec(kind, context, [_spec(child) for child in children])


def _restore(
    root: nn.Module,
    rows: list[tuple[Any, ...]],
    call: tuple[list[str], list[Any], str, CallSpec | None],
) -> EmittedGraph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def real(x: Any) -> Any:
        return nodes[x.name] if isinstance(x, _Reference) else x

    for op, name, target, args, kwargs, meta in rows:
        if isinstance(target, tuple):
            found: Any = torch.ops
            for part in target[1:]:
                found = getattr(found, part)
            target = found
        args, kwargs = map_aggregate((args, kwargs), real)  # type: ignore[misc]
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
        nodes[name].meta = meta
    names, specs, header, spec = call
    graph.set_codegen(CallCodeGen(_PyTreeInfo(names, *map(_spec, specs)), header, spec))
    return EmittedGraph(root, graph)


def plain_meta(node: fx.Node) -> dict[str, Any]:
    """What a node's meta says of its origin, without fake values and what belongs to a trace."""
    return {key: node.meta[key] for key in _KEPT_META if key in node.meta}
