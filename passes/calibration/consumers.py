"""The layers a repair can solve for: weighted contractions whose weight is read by nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from ...compiler.inference.rule import bound_arguments, op_name
from ...compiler.ir.program import Program
from .rows import Patches, flat_rows
from .uses import TRANSPOSED, follow, tensor_uses

# The arguments (input, weight, bias) of each op; a linear weight is [O, D], a matrix [D, O].
_LINEAR = {"aten::linear": ("x", "weight", "bias")}
_MATRIX = {
    "aten::addmm": ("mat1", "mat2", "x"),
    "aten::mm": ("x", "mat2", None),
    "aten::matmul": ("x", "other", None),
}
_CONVOLUTION = {f"aten::conv{rank}d": ("x", "weight", "bias") for rank in (1, 2, 3)}
_ARGUMENTS = {**_LINEAR, **_MATRIX, **_CONVOLUTION}


@dataclasses.dataclass(frozen=True)
class Consumer:
    """One weight and the nodes that contract with it.

    `patches`: how a convolution reads its input; None for a linear layer. `flipped`: the weight is
    [D, O] and not [O, D].
    """

    weight: str
    nodes: tuple[fx.Node, ...]
    flipped: bool
    patches: Patches | None

    @property
    def groups(self) -> int:
        return self.patches.groups if self.patches is not None else 1

    def input_of(self, node: fx.Node) -> fx.Node:
        """The node whose value the layer contracts."""
        return bound_arguments(node)[_ARGUMENTS[op_name(node.target)][0]]

    def bias_of(self, node: fx.Node) -> fx.Node | None:
        """The node of the vector the layer adds."""
        argument = _ARGUMENTS[op_name(node.target)][2]
        return bound_arguments(node)[argument] if argument else None

    def blocks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [G, n, D] of an input beside rows [G, n, O] of an output."""
        return self.patches.blocks(x, y) if self.patches is not None else flat_rows(x, y)

    def row_shape(self, y: Tensor) -> list[int]:
        """The axes of the output that count rows."""
        channel = self.channel(y)
        return [*y.shape[:channel], *y.shape[channel + 1 :]]

    def channel(self, y: Tensor) -> int:
        """The axis of the output that the weight makes."""
        return y.dim() - 1 - (len(self.patches.kernel) if self.patches is not None else 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or anything of its shape, as [G, D, O]."""
        if self.patches is None:
            return weight[None] if self.flipped else weight.T[None]
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).mT

    @property
    def taps(self) -> int:
        """The columns that one channel of the input comes in."""
        return math.prod(self.patches.kernel) if self.patches is not None else 1

    def weight_like(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """`matrix` [G, D, O] in the shape of the weight."""
        if self.patches is None:
            return matrix[0] if self.flipped else matrix[0].T
        return matrix.mT.reshape(weight.shape)


def find_consumers(
    program: Program, contractions: list[str]
) -> tuple[list[Consumer], dict[str, str]]:
    """The consumers among the named nodes, in order of their last use; and per other node why not.

    A weight that several nodes contract with is one consumer, unless its uses follow one another:
    what it does to its own input is no linear question.
    """
    nodes = {n.name: n for n in program.graph.nodes}
    uses = tensor_uses(program.graph)
    found: dict[tuple[Any, ...], list[fx.Node]] = {}
    reasons: dict[str, str] = {}
    for name in contractions:
        read = _read(program, nodes[name])
        if isinstance(read, str):
            reasons[name] = read
        else:
            found.setdefault(read, []).append(nodes[name])
    consumers: list[Consumer] = []
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    for (weight, flipped, patches), own in found.items():
        own.sort(key=order.__getitem__)
        others = [n for n in uses[weight] if n not in own]
        if others:
            reason = f"its weight {weight} is also read by {others[0].name}"
        elif follow(own):
            reason = f"the uses of its weight {weight} follow one another"
        else:
            consumers.append(Consumer(weight, tuple(own), flipped, patches))
            continue
        reasons.update({n.name: reason for n in own})
    consumers.sort(key=lambda c: order[c.nodes[-1]])
    return consumers, reasons


def _read(program: Program, node: fx.Node) -> tuple[str, bool, Patches | None] | str:
    """The weight's name, whether it is [D, O], and the patches; or why the node is left alone."""
    op = op_name(node.target)
    if op not in _ARGUMENTS:
        return f"{op.removeprefix('aten::') or node.target} is not a kind that is solved for"
    given = bound_arguments(node)
    if op == "aten::addmm" and (given["beta"] != 1 or given["alpha"] != 1):
        return "it scales its product or its bias"
    source, argument, bias = _ARGUMENTS[op]
    weight, flipped = given[argument], op in _MATRIX
    if isinstance(weight, fx.Node) and op_name(weight.target) in TRANSPOSED:
        weight, flipped = weight.args[0], not flipped
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed, or stands on the left"
    tensor = program.tensors.get(str(weight.target))
    if tensor is None or not tensor.is_floating_point():
        return "its weight is no floating tensor"
    rank = tensor.dim()
    if op in _CONVOLUTION:
        patches = Patches.of(given, tuple(tensor.shape[2:]))
        return str(weight.target), False, patches
    if rank != 2:
        return f"its weight has {rank} axes"
    x = given[source]
    if bias and isinstance(given[bias], fx.Node) and given[bias].meta["val"].dim() != 1:
        return "what it adds is no vector"
    return (str(weight.target), flipped, None) if isinstance(x, fx.Node) else "it has no input"


def columns(weight: Tensor, consumer: Consumer) -> tuple[int, int]:
    """D and O of one group."""
    outer = weight.shape[1] if consumer.flipped else weight.shape[0] // consumer.groups
    return math.prod(weight.shape) // (outer * consumer.groups), outer
