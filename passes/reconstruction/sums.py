"""The residual sum behind a layer: what the layer's output is added to, and how it gets there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.inference.rule import bound_arguments, op_name
from ..calibration.moments import wide
from ..calibration.streams import Stream

_UNCHANGED = "dropout clone contiguous alias to view reshape flatten unflatten unsqueeze squeeze"
_UNCHANGED_OPS = tuple(f"aten::{name}" for name in _UNCHANGED.split())
_SUMS = ("aten::add", "aten::add_")


@dataclasses.dataclass(frozen=True)
class ResidualSum:
    """`node` sums `other` and what `chain` makes of the layer's output: a batch norm, scales and
    shifts that do not depend on the input, and changes of shape that keep the order."""

    node: fx.Node
    other: fx.Node
    chain: tuple[fx.Node, ...]

    def value(self, stream: Stream, layer: fx.Node, result: Tensor) -> Tensor:
        """The sum, in double, with `result` as the layer's output."""
        return wide(stream.value_of(self.other)) + wide(self._through(stream, layer, result))

    def back(self, stream: Stream, layer: fx.Node, result: Tensor, error: Tensor) -> Tensor:
        """The error of the layer's output that makes this error of the sum; 0 where the chain lets
        nothing through."""
        one, none = torch.ones_like(result), torch.zeros_like(result)
        scale = wide(self._through(stream, layer, one)) - wide(self._through(stream, layer, none))
        through = scale.abs() > 1e-6 * scale.abs().amax()
        return torch.where(through, error / scale, 0.0).reshape(result.shape)

    def _through(self, stream: Stream, layer: fx.Node, result: Tensor) -> Tensor:
        made: list[fx.Node] = []
        value = stream.env[layer] = result
        try:
            for node in self.chain:
                made.append(node)
                value = stream.env[node] = stream.run_node(node)
        finally:
            for node in (layer, *made):
                stream.env.pop(node, None)
        return value


def find_sum(layer: fx.Node, layers: Collection[fx.Node]) -> ResidualSum | None:
    """The sum that alone reads the layer's output, where its other side is known before the layer
    runs and none of the `layers` to repair stands in between."""
    order = {node: i for i, node in enumerate(layer.graph.nodes)}
    chain: list[fx.Node] = []
    value = layer
    while len(value.users) == 1:
        (user,) = value.users
        other = _other_side(user, value)
        if other is not None and not _constant(other):
            known = order[other] < order[layer]
            between = any(order[layer] < order[n] < order[user] for n in layers)
            fits = user.meta["val"].shape == value.meta["val"].shape
            return (
                ResidualSum(user, other, tuple(chain)) if known and fits and not between else None
            )
        if not _affine(user, value):
            return None
        chain.append(user)
        value = user
    return None


def _other_side(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What a sum adds to `value`."""
    if op_name(node.target) not in _SUMS or node.kwargs.get("alpha", 1) != 1:
        return None
    others = [x for x in node.args[:2] if x is not value]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    is_tensor = isinstance(others[0].meta.get("val"), Tensor) or others[0].op == "get_attr"
    return others[0] if is_tensor else None


def _affine(node: fx.Node, value: fx.Node) -> bool:
    """Whether the node scales, shifts or reshapes `value` in a way no input has a say in."""
    op = op_name(node.target)
    if op == "aten::batch_norm":
        given = bound_arguments(node)
        return given["x"] is value and not given["training"]
    if op == "aten::dropout":
        return not bound_arguments(node).get("train", True)
    if op in _UNCHANGED_OPS:
        return node.args[0] is value
    if op in ("aten::mul", "aten::add"):
        return (
            all(x is value or _constant(x) for x in node.args[:2])
            and node.args[0] is not (node.args[1])
        )
    return False


def _constant(x: Any) -> bool:
    return not isinstance(x, fx.Node) or x.op == "get_attr"
