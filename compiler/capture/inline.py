"""Clean a graph that torch.export made: inline higher-order regions, strip what only asserts."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

ASSERTS = {
    "aten::_assert_tensor_metadata",
    "aten::_assert_scalar",
    "aten::_assert_async",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
}


def inline_regions(module: fx.GraphModule) -> None:
    """Replace calls of wrap_with_set_grad_enabled, wrap_with_autocast (disabled ones) and
    checkpoint by the body they wrap.

    A region that ran without grad has its results detached, so training sees what it saw.
    Regions of other kinds (cond, scan, enabled autocast) stay; inference freezes what they touch.
    """
    changed = True
    while changed:
        changed = False
        for node in list(module.graph.nodes):
            region = _region(module, node)
            if region is not None:
                _splice(module.graph, node, *region)
                changed = True
    module.graph.lint()


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[Any, tuple[Any, ...], bool] | None:
    """(body, its arguments, whether it ran without grad) of a region that may be inlined."""
    if node.op == "call_module":
        body = module.get_submodule(str(node.target))
        return (body, tuple(node.args), False) if isinstance(body, fx.GraphModule) else None
    if node.op != "call_function":
        return None
    name = getattr(node.target, "__name__", str(node.target))
    hop = torch.ops.higher_order
    if node.target is hop.wrap_with_set_grad_enabled:
        return _body(module, node.args[1]), tuple(node.args[2:]), node.args[0] is False
    if node.target is hop.wrap_with_autocast:
        if node.args[2] is False:
            return _body(module, node.args[4]), tuple(node.args[5:]), False
        return None
    if name in ("tag_activation_checkpoint", "wrap_activation_checkpoint", "invoke_subgraph"):
        rest = node.args[2:] if name == "invoke_subgraph" else node.args[1:]
        return _body(module, node.args[0]), tuple(rest), False
    return None


def _body(module: fx.GraphModule, node: Any) -> fx.GraphModule:
    body = module
    for part in str(node.target).split("."):
        body = getattr(body, part)
    return body


def _splice(
    graph: fx.Graph, call: fx.Node, body: fx.GraphModule, args: tuple[Any, ...], no_grad: bool
) -> None:
    mapping: dict[fx.Node, Any] = {}
    supply = iter(args)
    result: Any = None
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                mapping[node] = next(supply)
            elif node.op == "output":
                result = map_arg(node.args[0], lambda n: mapping[n])
            else:
                mapping[node] = graph.node_copy(node, lambda n: mapping[n])
                if node.op == "get_attr" and "val" not in node.meta:
                    _adopt(graph.owning_module, body, str(node.target))
        if no_grad:
            result = map_arg(result, lambda n: _detached(graph, n))
    _replace(graph, call, result)


def _adopt(owner: Any, body: fx.GraphModule, target: str) -> None:
    """A region's own submodule (a nested body) moves to the module that now holds the call."""
    if owner is not None and not hasattr(owner, target.split(".")[0]):
        setattr(owner, target.split(".")[0], getattr(body, target.split(".")[0]))


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return node
    copy = graph.call_function(torch.ops.aten.detach.default, (node,))
    copy.meta = dict(node.meta)
    return copy


def _replace(graph: fx.Graph, call: fx.Node, result: Any) -> None:
    if isinstance(result, (tuple, list)):
        for user in list(call.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
                graph.erase_node(user)
            else:
                user.args = map_arg(user.args, lambda n: tuple(result) if n is call else n)
    else:
        call.replace_all_uses_with(result)
    graph.erase_node(call)


def strip_asserts(graph: fx.Graph) -> None:
    """Remove nodes that only check metadata: they pin dtype and sizes, and return nothing used."""
    for node in reversed(list(graph.nodes)):
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if name in ASSERTS or (node.op == "call_module" and str(node.target) == "_guards_fn"):
            if not node.users:
                graph.erase_node(node)


def drop_unused(graph: fx.Graph) -> None:
    """Remove nodes without users that have no effect (in-place ops and inputs stay, and what
    enters and leaves vmap)."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            continue
        entry = str(getattr(node.target, "__module__", "")).startswith("torch._functorch")
        if node.op in ("get_attr", "call_function") and not entry:
            graph.erase_node(node)
