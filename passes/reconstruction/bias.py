"""Where a layer's bias can go: its own, a constant beside it, a batch norm's mean, a new one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from ...compiler.emit.build import Dense
from ...compiler.emit.graph_module import EmittedGraph
from ...compiler.inference.rule import bound_arguments, op_name
from ...compiler.ir.drop import CONSTANT
from ...compiler.rewrite.slicing import cut_tensor, spread_tensor
from ..calibration.consumers import Consumer, columns, find_consumers
from ..calibration.uses import tensor_uses

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation

_HOLDERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclasses.dataclass(frozen=True)
class BiasPlace:
    """The tensor that a shift of the output is added to, `sign` times. `new`: it is yet to be made;
    `behind`: a sum behind the layer adds it, and not the layer itself."""

    tensor: str
    sign: int = 1
    new: bool = False
    behind: bool = False


def find_place(state: Compilation, consumer: Consumer, add: bool) -> BiasPlace | str:
    """Where the consumer's bias goes, or why it has none. `add`: a new one may be made."""
    place = _any_place(state, consumer, add)
    if isinstance(place, str) or place.new:
        return place
    assert state.dense is not None
    tensors, result = state.dense.program.tensors, consumer.nodes[0].meta["val"]
    _, outer = columns(tensors[consumer.weight], consumer)
    shape = [outer * consumer.groups]
    if place.behind:  # shaped to be added along the axis that the weight makes
        shape = [1] * result.dim()
        shape[consumer.channel(result)] = outer * consumer.groups
    elif place.sign < 0 and consumer.channel(result) != 1:
        return "it has no bias, and the batch norm behind it runs over another axis"
    same = list(tensors[place.tensor].shape) == shape
    return place if same else "its bias has another shape than its result"


def _any_place(state: Compilation, consumer: Consumer, add: bool) -> BiasPlace | str:
    dense = state.dense
    assert dense is not None
    graph = dense.program.graph
    given = [consumer.bias_of(node) for node in consumer.nodes]
    first = consumer.nodes[0]
    if any(bias is not None for bias in given):
        read = {str(b.target) for b in given if b is not None and b.op == "get_attr"}
        if None in given or len(read) != 1 or any(b.op != "get_attr" for b in given if b):
            return "its bias is computed, or not the same at each use"
        name = read.pop()
        others = [n for n in tensor_uses(graph)[name] if n not in consumer.nodes]
        return f"its bias is also read by {others[0].name}" if others else BiasPlace(name)
    behind = next(iter(first.users)) if len(first.users) == 1 else None
    if len(consumer.nodes) > 1 or behind is None:
        return _new_place(state, consumer) if add else "it has no bias"
    constant = _constant_behind(first, behind)
    if constant is not None:
        return BiasPlace(constant, behind=True)
    mean = _mean_behind(graph, first, behind)
    if mean is not None:
        return BiasPlace(mean, sign=-1)
    return _new_place(state, consumer) if add else "it has no bias"


def _constant_behind(node: fx.Node, behind: fx.Node) -> str | None:
    """The constant that the rewrite added to the node's value."""
    if op_name(behind.target) != "aten::add" or len(behind.args) != 2 or behind.args[0] is not node:
        return None
    added = behind.args[1]
    own = isinstance(added, fx.Node) and str(added.target) == f"{CONSTANT}{node.name}"
    return str(added.target) if own else None  # type: ignore[union-attr]


def _mean_behind(graph: fx.Graph, node: fx.Node, behind: fx.Node) -> str | None:
    """The running mean of the batch norm that alone reads the node: less of it is more bias."""
    if op_name(behind.target) != "aten::batch_norm":
        return None
    given = bound_arguments(behind)
    mean = given["running_mean"]
    if given["x"] is not node or given["training"] or not isinstance(mean, fx.Node):
        return None
    alone = mean.op == "get_attr" and tensor_uses(graph)[str(mean.target)] == [behind]
    return str(mean.target) if alone else None


def _new_place(state: Compilation, consumer: Consumer) -> BiasPlace | str:
    """A new bias beside the weight of a standard layer, which has room for one."""
    dense = state.dense
    assert dense is not None
    path, _, leaf = consumer.weight.rpartition(".")
    owners = dict(state.graph.source.named_modules(remove_duplicate=False))
    owner = owners.get(path)
    kind = next((k for k in _HOLDERS if isinstance(owner, k)), None)
    name = f"{path}.bias"
    if leaf != "weight" or owner is None or kind is None or type(owner).forward != kind.forward:
        return "it has no bias, and no standard layer of torch.nn that could hold one"
    if dense.program.aliases.get(consumer.weight) or name in dense.program.tensors:
        return "it has no bias, and its weight has several owners"
    if any("bias" not in bound_arguments(node) for node in consumer.nodes):
        return "it has no bias, and its op takes none"
    if state.room is not None and _cost(state, consumer) > state.room[1]:
        return "it has no bias, and the target leaves no room for one"
    return BiasPlace(name, new=True)


def _cost(state: Compilation, consumer: Consumer) -> int:
    """What a new bias takes, in the unit of the room that is left."""
    assert state.dense is not None
    weight = state.dense.program.tensors[consumer.weight]
    each = weight.element_size() if state.room is not None and state.room[0] == "bytes" else 1
    return weight.shape[0] * each


def add_bias(state: Compilation, consumer: Consumer, name: str) -> None:
    """Give the program, the graph module and the user's class a zero bias, the same object."""
    dense = state.dense
    assert dense is not None
    weight = dense.program.tensors[consumer.weight]
    outer = weight.shape[0]
    bias = nn.Parameter(weight.new_zeros(outer).detach(), weight.requires_grad)
    dense.program.tensors[name] = bias
    if state.room is not None:
        state.room = state.room[0], state.room[1] - _cost(state, consumer)
    for node in consumer.nodes:
        with dense.program.graph.inserting_before(node):
            _set_bias(node, dense.program.graph.get_attr(name))
    _add_to_graph_module(dense, consumer, name, bias)
    if dense.module is not None:
        path = state.plan.thinning.now(name.rpartition(".")[0])
        dense.module.get_submodule(path).register_parameter("bias", bias)
        # by which a fresh model gets its place for it; trained values are not part of a plan
        state.plan.constants[name] = torch.zeros_like(bias.detach()).cpu()


def carry_biases(state: Compilation) -> None:
    """Give the dense model the biases that a repair added to the earlier result, as it has them by
    now, cut further; where there is no place any more they go, and a note says why."""
    earlier, dense = state.earlier, state.dense
    if earlier is None or earlier.dense is None or dense is None:
        return
    before, known = earlier.dense.program.tensors, earlier.graph.program.tensors
    added = {n for n in before if n.endswith(".bias") and n not in known}
    added -= dense.program.tensors.keys()
    if not added:
        return
    sinks = (s.node.name for s in state.graph.inference.sinks if s.weight is not None)
    there = {node.name for node in dense.program.graph.nodes}
    consumers, _ = find_consumers(dense.program, [n for n in dict.fromkeys(sinks) if n in there])
    gone: list[str] = []
    for consumer in consumers:
        name = f"{consumer.weight.rpartition('.')[0]}.bias"
        if name not in added:
            continue
        place = _new_place(state, consumer)
        if isinstance(place, str):
            gone.append(place)
            continue
        add_bias(state, consumer, name)
        values = before[name].detach()
        for side, sign in ((earlier, -1), (state, 1)):
            axis = side.graph.inference.tensors[consumer.weight][:1]
            kept, factor = side.plan.combined(), side.plan.scales.get(consumer.weight)
            cut = spread_tensor if sign < 0 else cut_tensor
            values = cut(values, axis, kept)
            values = values if factor is None else values * (factor.to(values.device) ** sign)
        with torch.no_grad():
            dense.program.tensors[name].copy_(values)
    if gone:
        why = "; ".join(dict.fromkeys(gone))
        state.notes.append(f"{len(gone)} biases of an earlier round's repair went: {why}")


def _add_to_graph_module(dense: Dense, consumer: Consumer, name: str, bias: Tensor) -> None:
    module = dense.graph_module
    assert isinstance(bias, nn.Parameter)
    assert isinstance(module, EmittedGraph)
    module.get_submodule(name.rpartition(".")[0]).register_parameter("bias", bias)
    names = {node.name for node in consumer.nodes}
    for node in list(module.graph.nodes):
        if node.name in names and node.op == "call_function":
            with module.graph.inserting_before(node):
                _set_bias(node, module.graph.get_attr(module.target_of(name)))
    module.recompile()


def _set_bias(node: fx.Node, bias: fx.Node) -> None:
    """The third argument of linear and of the convolutions."""
    if len(node.args) > 2:
        node.update_arg(2, bias)
    elif "bias" in node.kwargs or len(node.args) < 2:
        node.update_kwarg("bias", bias)
    else:
        node.args = (*node.args, bias)
