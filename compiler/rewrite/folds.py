"""Constants that removed channels and branches leave behind: into biases where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..inference.graph import Graph, SideBranch
from ..inference.residual import alike, same_value
from ..inference.rule import bound_arguments, op_name
from ..ir.drop import CONSTANT, Drop, without
from ..ir.program import Program
from .slicing import Kept, term_indices

_LAYERS = ("linear", "addmm", "conv1d", "conv2d", "conv3d", "layer_norm", "batch_norm")
_VIEWS = ("view", "reshape", "_unsafe_view")


@dataclasses.dataclass(frozen=True)
class Fold:
    """A constant that removed channels contributed to a consumer: added to its bias.

    `axis`: the result axis the vector lies along; `vector`: its values, at the original width.
    """

    node: str
    axis: int
    vector: Tensor


def fold_constants(
    graph: Graph | SideBranch, dense: Program, folds: Sequence[Fold], kept: Kept
) -> None:
    """Add constant vectors to the results of consumers, through their biases where these are their
    own."""
    originals = {n.name: n for n in graph.program.graph.nodes}
    nodes = {n.name: n for n in dense.graph.nodes}
    for fold in folds:
        node, terms = nodes[fold.node], graph.inference.terms[originals[fold.node]]
        entries = term_indices(terms[fold.axis], kept).to(fold.vector.device)
        vector = fold.vector.index_select(0, entries)
        if not _into_bias(dense, node, vector):
            _add_after(dense, node, fold, vector)


def absorb_constants(dense: Program, results: Sequence[str]) -> None:
    """Take the constants that stand for dropped branches into the bias of the layer before, where
    nothing else reads what it makes; the sum with the constant goes."""
    nodes = {n.name: n for n in dense.graph.nodes}
    for name in results:
        total = nodes.get(name)
        layer = absorbing_layer(total) if total is not None else None
        if total is None or layer is None:
            continue
        source, constant = total.args
        assert isinstance(constant, fx.Node)
        vector = dense.tensors[str(constant.target)].detach().reshape(-1)
        if _into_bias(dense, layer, vector):
            total.replace_all_uses_with(source)
            dense.graph.erase_node(total)
            dense.graph.erase_node(constant)
            del dense.tensors[str(constant.target)]


def absorbable(graph: Graph, drop: Drop) -> bool:
    """Whether a bias can take the constant of one more drop."""
    program = without(graph.whole.program, [*graph.drops, drop])
    node = next(n for n in program.graph.nodes if n.name == drop.result)
    return absorbing_layer(node) is not None


def absorbing_layer(total: fx.Node) -> fx.Node | None:
    """The layer whose bias can take the constant that a node adds to its source; None where the
    node adds none, or no layer's result comes to it alone and unchanged."""
    constant = total.args[1] if len(total.args) == 2 else None
    if not isinstance(constant, fx.Node) or constant.target != CONSTANT + total.name:
        return None
    shape = list(constant.meta["val"].shape)
    channel = next((i for i, size in enumerate(shape) if size != 1), len(shape) - 1)
    pending = [(total.args[0], total, channel)]
    while pending:
        node, reader, axis = pending.pop()
        if not isinstance(node, fx.Node) or node.op != "call_function" or len(node.users) != 1:
            continue
        if not alike(node, reader):
            if not _viewed(node, reader, axis):
                continue
            axis = node.meta["val"].dim() - 1
        op = op_name(node.target).removeprefix("aten::")
        if op in _LAYERS and _takes(node, op, axis):
            return node
        if op in ("add", *_VIEWS) or same_value(node):
            pending += [(x, node, axis) for x in node.all_input_nodes]
    return None


def _viewed(node: fx.Node, reader: fx.Node, axis: int) -> bool:
    """Whether the reader is a view of the node that leaves the last axis, which is the one, as it
    is."""
    value, seen = node.meta.get("val"), reader.meta["val"]
    if not isinstance(value, Tensor) or op_name(reader.target).removeprefix("aten::") not in _VIEWS:
        return False
    return (
        value.dim() > 0 and axis == seen.dim() - 1 and str(value.shape[-1]) == str(seen.shape[-1])
    )


def _takes(node: fx.Node, op: str, axis: int) -> bool:
    """Whether the node's bias lies along that axis of its result, and it has room for one."""
    given = bound_arguments(node)
    rank = node.meta["val"].dim()
    own = {"conv1d": rank - 2, "conv2d": rank - 3, "conv3d": rank - 4, "batch_norm": 1}
    bias = _bias(node)
    if bias is None:
        return op in ("linear", "conv1d", "conv2d", "conv3d") and axis == own.get(op, rank - 1)
    single = op != "layer_norm" or len(given["normalized_shape"]) == 1
    uses = _uses(node.graph, bias) if isinstance(bias, fx.Node) and bias.op == "get_attr" else []
    return single and len(uses) == 1 and axis == own.get(op, rank - 1)


def _into_bias(dense: Program, node: fx.Node, vector: Tensor) -> bool:
    """Add a vector to a node's own bias, or give it one; False where it can have none."""
    given = bound_arguments(node)
    bias, weight = _bias(node), given.get("weight")
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and _sole_use(dense.graph, bias):
        old = dense.tensors[str(bias.target)]
        new = (old.detach().double() + vector.double()).to(old.dtype)
        dense.tensors[str(bias.target)] = _like(old, new)
        return True
    if bias is None and "bias" in given and weight is not None and _own_weight(dense, weight):
        name = f"{str(weight.target).rpartition('.')[0]}.bias"
        like = dense.tensors[str(weight.target)]
        dense.tensors[name] = _like(like, vector.to(like.dtype))
        with dense.graph.inserting_before(node):
            set_argument(node, "bias", dense.graph.get_attr(name))
        return True
    return False


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replace an argument of a node by its schema name."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    for i, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            if i < len(node.args):
                node.update_arg(i, value)
            else:
                node.update_kwarg(name, value)
            return
    raise KeyError(f"{target} has no argument {name}")


def _bias(node: fx.Node) -> Any:
    """The vector a contraction adds to every position of its result."""
    given = bound_arguments(node)
    if op_name(node.target) == "aten::addmm" and given.get("beta") == 1:
        added = given["x"]
        return added if added.meta["val"].dim() == 1 else None
    return given.get("bias")


def _own_weight(dense: Program, weight: Any) -> bool:
    """Whether the weight is a module's `weight`, used once, beside which a bias has a free name."""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    path, _, leaf = str(weight.target).rpartition(".")
    return (
        leaf == "weight" and _sole_use(dense.graph, weight) and f"{path}.bias" not in dense.tensors
    )


def _sole_use(graph: fx.Graph, tensor: fx.Node) -> bool:
    return len(_uses(graph, tensor)) == 1


def _uses(graph: fx.Graph, tensor: fx.Node) -> list[fx.Node]:
    return [
        user
        for n in graph.nodes
        if n.op == "get_attr" and n.target == tensor.target
        for user in n.users
    ]


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _add_after(dense: Program, node: fx.Node, fold: Fold, vector: Tensor) -> None:
    name = CONSTANT + node.name
    rank = node.meta["val"].dim()
    shape = [1] * rank
    shape[fold.axis] = -1
    dense.tensors[name] = nn.Parameter(
        vector.reshape(shape).to(node.meta["val"].dtype),
        requires_grad=any(isinstance(t, nn.Parameter) for t in dense.tensors.values()),
    )
    users = list(node.users)
    with dense.graph.inserting_after(node):
        constant = dense.graph.get_attr(name)
    with dense.graph.inserting_after(constant):
        total = dense.graph.call_function(torch.ops.aten.add.Tensor, (node, constant))
    total.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, total)


def folded_tensors(graph: Graph, dense: Program, folds: Sequence[Fold]) -> list[str]:
    """The names of dense tensors whose values hold a folded constant."""
    names = set(dense.tensors) - set(graph.program.tensors)
    nodes = {n.name: n for n in dense.graph.nodes}
    taken = (n for n in graph.program.graph.nodes if n.name not in nodes)
    absorbing = [layer.name for n in taken if (layer := absorbing_layer(n)) is not None]
    for name in (*(fold.node for fold in folds), *absorbing):
        bias = _bias(nodes[name])
        if isinstance(bias, fx.Node):
            names.add(str(bias.target))
    return sorted(names)
