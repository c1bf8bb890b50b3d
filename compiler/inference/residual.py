"""Residual sums of a graph, and what may go with their branches without touching anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from torch import Tensor, fx, nn

from ..ir.drop import dying
from ..ir.memory import memory_owners, written
from ..ir.program import fake_value
from .constants import DETACH
from .graph import Graph
from .rule import bound_arguments, op_name

COPIES = frozenset("to _to_copy detach alias contiguous clone".split())


@dataclasses.dataclass(frozen=True)
class Sum:
    """A residual sum: what `branch` adds to `skip`."""

    node: fx.Node
    skip: fx.Node
    branch: fx.Node


class Residuals:
    """The residual sums of a graph, by node.

    One side, the skip, is needed to compute the other, the branch; or both are computed from one
    value alone, the skip through one layer and the branch through more (a projection shortcut).
    """

    def __init__(self, graph: Graph) -> None:
        self.tensors = graph.program.tensors
        self.nodes = list(graph.program.graph.nodes)
        self.order = {n: i for i, n in enumerate(self.nodes)}
        self.owners = memory_owners(graph.program.graph)
        self.contracting = {s.node for s in graph.inference.sinks}
        self._layers = {s.node for s in graph.inference.sinks if s.weight is not None}
        found = ((n, self._residual(n)) for n in self.nodes)
        self.sums = {n: total for n, total in found if total is not None}

    def _residual(self, node: fx.Node) -> Sum | None:
        sides = _summands(node)
        if sides is None:
            return None
        for skip, branch in (sides, sides[::-1]):
            if self._feeds(skip, branch) and self._mixes(dying(node, skip)):
                return Sum(node, self.origin(skip), branch)
        for skip, branch in (sides, sides[::-1]):
            if self._projected(node, skip, branch):
                return Sum(node, skip, branch)
        return None

    def _projected(self, node: fx.Node, skip: fx.Node, branch: fx.Node) -> bool:
        """Whether both sides come from one value alone, the skip through one layer, the branch
        through more."""
        entries: list[set[fx.Node]] = []
        layers: list[int] = []
        for side, other in ((skip, branch), (branch, skip)):
            inner = {n for n in dying(node, other) if n.op == "call_function"}
            if side not in inner:
                return False
            read = {x for n in inner for x in n.all_input_nodes if x.op != "get_attr"}
            entries.append({x for x in read - inner if is_float(x)})
            layers.append(len(inner & self._layers))
        return entries[0] == entries[1] and len(entries[0]) == 1 and layers[0] == 1 < layers[1]

    def _feeds(self, first: fx.Node, later: fx.Node) -> bool:
        """Whether a value (or what it is a copy of) is needed to compute another."""
        while same_value(first) and alike(first, first.args[0]):
            first = first.args[0]  # type: ignore[assignment]
        limit, seen, pending = self.order[first], {later}, [later]
        while pending:
            for x in pending.pop().all_input_nodes:
                if x is first:
                    return True
                if x not in seen and self.order[x] > limit:
                    seen.add(x)
                    pending.append(x)
        return False

    def _mixes(self, nodes: Sequence[fx.Node]) -> bool:
        """Whether something is computed from several entries: a gelu written out is no branch."""
        return any(n in self.contracting for n in nodes) or any(
            n.op == "get_attr" and isinstance(self.tensors.get(str(n.target)), nn.Parameter)
            for n in nodes
        )

    def origin(self, node: fx.Node) -> fx.Node:
        """The first node that has this value: through casts to the same dtype, and copies. Not
        through dropout, which train mode needs."""
        while is_copy(node) and alike(node, node.args[0]):
            node = node.args[0]  # type: ignore[assignment]
        return node

    def addends(self, total: Sum) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
        """(node, what it becomes, the value it then lacks): the branch, and where that is a sum of
        several (attention and MLP side by side) each of them."""
        yield total.node, total.skip, total.branch
        pending = [total.branch]
        while pending:
            node = self.origin(pending.pop())
            sides = _summands(node)
            if sides is None or len(node.users) != 1 or node in self.sums:
                continue
            mixing = [self._mixes(dying(node, other)) for other in sides[::-1]]
            if all(mixing):
                yield node, sides[1], sides[0]
                yield node, sides[0], sides[1]
                pending += sides

    def removable(self, source: fx.Node, result: fx.Node) -> list[fx.Node] | None:
        """What goes with it; None where something between is read elsewhere, or memory is shared
        in a way that a drop would change."""
        gone = dying(result, source)
        inside = set(gone) | {result}
        between = self._between(source, result)
        if not between <= inside or not self._mixes(gone):
            return None
        for n in inside:
            bases = {self.owners[base] for base in written(n)} - inside
            if not bases or n.target is DETACH:
                continue
            if n is not result or any(self._read_later(base, result) for base in bases):
                return None
        stretch = self.nodes[self.order[source] + 1 : self.order[result]]
        bases = {self.owners[base] for n in stretch for base in written(n)}
        return None if self.owners[source] in bases else gone

    def _read_later(self, owner: fx.Node, result: fx.Node) -> bool:
        """Whether the memory that `result` writes to is read after it, and not through it."""
        through = {result}
        for n in self.nodes[self.order[result] + 1 :]:
            read = [x for x in n.all_input_nodes if self.owners[x] is owner]
            if any(x not in through for x in read):
                return True
            if read and self.owners[n] is owner:
                through.add(n)
        return False

    def _between(self, source: fx.Node, result: fx.Node) -> set[fx.Node]:
        """The nodes on the way from source to result."""
        stretch = self.nodes[self.order[source] + 1 : self.order[result]]
        above = {source}
        for n in stretch:
            if _is_value(n) and any(x in above for x in n.all_input_nodes):
                above.add(n)
        below = {result}
        for n in reversed(stretch):
            if any(user in below for user in n.users):
                below.add(n)
        return (above & below) - {source}


def _summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values of one shape and dtype that a node adds."""
    if op_name(node.target) not in ("aten::add", "aten::add_"):
        return None
    given = bound_arguments(node)
    x, y = given["x"], given.get("other")
    if not isinstance(x, fx.Node) or not isinstance(y, fx.Node) or given.get("alpha") != 1:
        return None
    floating = is_float(node) and node.op == "call_function"
    values = x.op != "get_attr" and y.op != "get_attr" and x is not y
    return (x, y) if floating and values and alike(node, x) and alike(node, y) else None


def alike(a: fx.Node, b: object) -> bool:
    """Whether two values have the same shape, sizes that are not known included, and dtype."""
    x, y = fake_value(a), fake_value(b) if isinstance(b, fx.Node) else None
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    shapes = [[str(s) for s in t.shape] for t in (x, y)]
    return shapes[0] == shapes[1] and x.dtype == y.dtype and x.device == y.device


def is_copy(node: fx.Node) -> bool:
    """Whether a node gives its operand's values as they are, in any mode; the dtype may change."""
    name = op_name(node.target).removeprefix("aten::")
    return name in COPIES and isinstance(node.args[0], fx.Node)


def same_value(node: fx.Node) -> bool:
    """Whether a node gives its operand's values as they are in eval mode: a copy, or dropout."""
    name = op_name(node.target).removeprefix("aten::")
    return is_copy(node) or ("dropout" in name and not bound_arguments(node).get("train"))


def _is_value(node: fx.Node) -> bool:
    """Whether a node yields data, and not a size."""
    value = fake_value(node)
    return isinstance(value, (Tensor, tuple, list))


def is_float(node: fx.Node) -> bool:
    value = fake_value(node)
    return isinstance(value, Tensor) and value.is_floating_point()
