"""A factor on a value, moved up to the parameters it is linear in: a layer's weight and bias.

The factor is followed entry by entry, so that of a fused projection (q, k and v in one matrix) only
the rows that make the value are scaled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program
from ..verify.interpreter import ProgramInterpreter

_MOVES = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T mT movedim swapaxes "
    "unsqueeze squeeze expand expand_as broadcast_to view_as reshape_as contiguous clone alias "
    "detach slice narrow select split split_with_sizes chunk unbind cat stack roll flip "
    "repeat repeat_interleave pixel_shuffle pixel_unshuffle".split()
)
_PICKS = frozenset(["index", "index_select", "gather"])  # moves too, by tensors of integers
_KEEPS = frozenset(["neg", "dropout", "to", "_to_copy", "type_as", "lift_fresh_copy"])
_SUMS = frozenset(["add", "sub"])
_SCALES = frozenset(["mul", "div"])
_LAYERS = frozenset(["linear", "conv1d", "conv2d", "conv3d"])
_PRODUCTS = frozenset(["matmul", "bmm"])
_NORMS = frozenset(["layer_norm", "rms_norm", "group_norm", "batch_norm"])


class CannotPush(Exception):
    """The value is no linear image of parameters of its own."""


class FactorPush:
    """Where factors on values of one program may go. Sizes are those of the example inputs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values: dict[fx.Node, Any] = {}  # results of nodes, tensors by their shapes
        self.second: frozenset[fx.Node] = frozenset()  # products that scale their second operand
        self._moving: set[fx.Node] = set()  # what depends on the inputs
        self._integers: dict[fx.Node, Tensor] = {}
        self._feasible: dict[fx.Node, bool] = {}
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}

        def record(node: fx.Node, value: Any) -> Any:
            self._record(node, value)
            return value

        ProgramInterpreter(program, node_hook=record)(program.flat_inputs())
        for node in program.graph.nodes:
            if node.op == "placeholder" or not self._moving.isdisjoint(node.all_input_nodes):
                self._moving.add(node)
            if node.op == "get_attr" and str(node.target) in program.tensors:
                self._record(node, program.tensors[str(node.target)])

    def _record(self, node: fx.Node, value: Any) -> None:
        self.values[node] = _shapes(value)
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dim()
        if whole and value.device.type != "meta":
            self._integers[node] = value.cpu()

    def product(self, value: fx.Node) -> fx.Node | None:
        """The product of activations that a value is, up to moves and scalings."""
        node = value
        while _op(node) not in _PRODUCTS or node.args[1] not in self._moving:
            operands = list(self._tensors(node)) if node.op == "call_function" else []
            if not operands or _op(node) not in _MOVES | _PICKS | _KEEPS | _SCALES:
                return None
            node = operands[0]
        return node

    def run(
        self,
        factors: Iterable[tuple[fx.Node, fx.Node, float]],
        second: Iterable[fx.Node] = (),
    ) -> dict[str, Tensor]:
        """What to multiply parameters by, so that for each (value, user, factor) the user sees the
        value times the factor, and nothing else changes; by name, each of shape with ones where it
        is constant along an axis. `second`: products whose second operand takes the factor. Raises
        CannotPush."""
        self.second = frozenset(second)
        self._feasible.clear()
        asked = [(value, user, factor) for value, user, factor in factors if factor != 1]
        visited: set[fx.Node] = set()
        for value, _, _ in asked:
            self._visit(value, visited)
        needs: dict[fx.Node, Any] = {}
        found: dict[str, Tensor] = {}
        given = {(value, user): factor for value, user, factor in asked}
        for node in sorted(visited, key=lambda n: -self.order[n]):
            need = self._need(node, needs, visited, given)
            if node.op == "get_attr":
                name = str(node.target)
                found[name] = _joined(found.get(name), need)
        for node in self.program.graph.nodes:  # the same tensor, read elsewhere, must stay
            if node.op == "get_attr" and str(node.target) in found and node not in visited:
                raise CannotPush(f"{node.target} is used elsewhere too")
        return {name: _compressed(factor) for name, factor in found.items()}

    def _visit(self, node: fx.Node, visited: set[fx.Node]) -> None:
        if node in visited:
            return
        if not self.feasible(node):
            raise CannotPush(f"{node.name} ({op_name(node.target) or node.op}) is not linear")
        visited.add(node)
        for parent in self._parents(node):
            self._visit(parent, visited)

    def feasible(self, node: fx.Node) -> bool:
        """Whether a factor on the value can be moved to parameters."""
        if node not in self._feasible:
            self._feasible[node] = False
            self._feasible[node] = self._is_feasible(node)
        return self._feasible[node]

    def _is_feasible(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            tensor = self.program.tensors.get(str(node.target))
            return isinstance(tensor, nn.Parameter)
        if node.op != "call_function" or (node.target is not operator.getitem and not _op(node)):
            return False
        parents = self._parents(node)
        return bool(parents) and all(self.feasible(p) for p in parents)

    def _parents(self, node: fx.Node) -> list[fx.Node]:
        """The operands that take over a node's factor."""
        if node.op != "call_function":
            return []
        if node.target is operator.getitem:
            return [node.args[0]] if isinstance(node.args[0], fx.Node) else []
        name, given = _op(node), bound_arguments(node)
        if name in _MOVES or name in _KEEPS or name in _SUMS:
            if given.get("alpha", 1) != 1:
                return []
            operands = list(self._tensors(node))
            return operands[:1] if name in _KEEPS or name.endswith("_as") else operands
        if name in _PICKS:
            operands = list(self._tensors(node))
            return operands[:1] if all(x in self._integers for x in operands[1:]) else []
        if name in _LAYERS or name in _NORMS:
            own = [given.get("weight"), given.get("bias")]
            return [x for x in own if isinstance(x, fx.Node)] if own[0] is not None else []
        if name == "addmm" and given.get("beta") == given.get("alpha") == 1:
            return [given["x"], given["mat2"]]
        if name == "embedding":
            return [given["weight"]]
        if name in _PRODUCTS:
            operands = list(self._tensors(node))
            weight = operands[-1] not in self._moving  # x @ weight.T
            return operands[1:] if weight or node in self.second else operands[:1]
        if name in _SCALES:
            operands = list(self._tensors(node))
            if name == "div":
                operands = operands[:1]
            # a parameter (a norm's own weight) first: the way is shortest there
            operands.sort(key=lambda x: x.op != "get_attr")
            return next(([x] for x in operands if self.feasible(x)), [])
        return []

    def _tensors(self, node: fx.Node) -> Iterable[fx.Node]:
        """Operands that are tensors, without numbers in tensors' clothing."""
        for x in node.all_input_nodes:
            if isinstance(self.values.get(x), torch.Size | tuple):
                yield x

    def _need(
        self,
        node: fx.Node,
        needs: dict[fx.Node, Any],
        visited: set[fx.Node],
        given: dict[tuple[fx.Node, fx.Node], float],
    ) -> Any:
        """The factor per entry of a node's value that all its users want (nan: nobody asks)."""
        if node in needs:
            return needs[node]
        total = _full(self.values[node], float("nan"))
        for user in node.users:
            if user.op == "call_function" and not _yields_tensors(user):
                continue  # a size
            if (node, user) in given:
                if user in visited:
                    raise CannotPush("two scales on one way")
                wanted = _full(self.values[node], given[node, user])
            elif (user in visited or _is_move(user)) and node in self._parents(user):
                # a part that is read elsewhere (k beside q) stays as it is
                wanted = self._back(node, user, self._need(user, needs, visited, given))
            else:
                wanted = _full(self.values[node], 1.0)
            total = _joined(total, wanted)
        needs[node] = total
        return total

    def _back(self, node: fx.Node, user: fx.Node, need: Any) -> Any:
        """The factor on `node` that a factor on `user` comes from."""
        shape = self.values[node]
        if user.target is operator.getitem:
            parts = [_full(s, float("nan")) for s in shape]
            parts[user.args[1]] = need  # type: ignore[index]
            return tuple(parts)
        name = _op(user)
        if name in _MOVES or name in _PICKS:
            return self._moved(node, user, need)
        if name in _KEEPS:
            return need
        if name in _SUMS or name in _SCALES:
            return _reduced(need, lambda labels: labels.expand(need.shape), shape)
        given = bound_arguments(user)
        if name in _PRODUCTS and node in self._moving:
            return _full(shape, _uniform(need))
        if name == "addmm" and node is given["x"]:
            return _reduced(need, lambda labels: labels.expand(need.shape), shape)
        if name in _PRODUCTS or name in ("addmm", "embedding"):  # columns
            return _reduced(
                need, lambda labels: labels.expand(need.shape), (need.shape[-1],)
            ).expand(shape)
        rank = len(need.shape)
        axis = rank - 1 if name in ("linear", "layer_norm", "rms_norm") else 1
        if name in ("layer_norm", "rms_norm"):
            return _reduced(need, lambda labels: labels.expand(need.shape), shape)
        place = [1] * rank
        place[axis] = -1
        rows = _reduced(need, lambda labels: labels.reshape(place).expand(need.shape), (shape[0],))
        return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)

    def _moved(self, node: fx.Node, user: fx.Node, need: Any) -> Any:
        """Run the op on entry numbers to see where each entry went."""
        total = 0
        labels: dict[fx.Node, Tensor] = {}
        operands = list(self._tensors(user))
        for x in operands[:1] if _op(user) in _PICKS else operands:
            count = self.values[x].numel()
            labels[x] = torch.arange(total, total + count).reshape(self.values[x])
            total += count

        def value(x: fx.Node) -> Any:
            return labels[x] if x in labels else self._integers.get(x, self.values[x])

        moved = user.target(*map_arg(user.args, value), **map_arg(user.kwargs, value))  # type: ignore[operator]
        flat = torch.full((total,), float("nan"))
        pairs = zip(moved, need, strict=True) if isinstance(need, tuple) else [(moved, need)]
        for places, wanted in pairs:
            flat = _joined(flat, _scattered(places, wanted, total))
        return flat[labels[node]]


def _op(node: fx.Node) -> str:
    return op_name(node.target).rpartition("::")[2].rstrip("_")


def _is_move(node: fx.Node) -> bool:
    return node.target is operator.getitem or _op(node) in _MOVES or _op(node) in _PICKS


def _yields_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (Tensor, tuple, list))


def _shapes(value: Any) -> Any:
    """Tensors as shapes; a tensor of no axes as its number."""
    if isinstance(value, Tensor):
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)  # type: ignore[attr-defined]
        valueless = wrapped or value.device.type == "meta"
        return value.shape if value.dim() or valueless else value.item()
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return tuple(_shapes(v) for v in value)
    return value


def _full(shape: Any, value: float) -> Any:
    if isinstance(shape, tuple) and not isinstance(shape, torch.Size):
        return tuple(_full(s, value) for s in shape)
    return torch.full(shape, value)


def _joined(a: Any, b: Any) -> Any:
    """Both wishes; CannotPush where they differ."""
    if a is None:
        return b
    if isinstance(a, tuple):
        return tuple(map(_joined, a, b))
    if ((a != b) & ~a.isnan() & ~b.isnan()).any():
        raise CannotPush("another value is made from the same entries")
    return torch.where(a.isnan(), b, a)


def _scattered(places: Tensor, wanted: Tensor, count: int) -> Tensor:
    asked = ~wanted.isnan()
    where, what = places[asked], wanted[asked]
    flat = torch.full((count,), float("nan"))
    flat[where] = what
    if (flat[where] != what).any():
        raise CannotPush("one entry is wanted at two scales")
    return flat


def _reduced(need: Tensor, spread: Callable[[Tensor], Tensor], shape: Any) -> Tensor:
    """The factor per entry of a tensor of `shape` that `spread` lays along the value."""
    count = torch.Size(shape).numel()
    return _scattered(spread(torch.arange(count).reshape(shape)), need, count).reshape(shape)


def _uniform(need: Tensor) -> float:
    asked = need[~need.isnan()]
    if not len(asked) or (asked != asked[0]).any():
        raise CannotPush("a product of values has no one scale")
    return float(asked[0])


def _compressed(factor: Tensor) -> Tensor:
    factor = torch.where(factor.isnan(), 1.0, factor)
    for axis in range(factor.dim()):
        first = factor.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(factor), factor):
            factor = first
    return factor.clone()
