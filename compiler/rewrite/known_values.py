"""Which entries of which values are the same whatever the input: constants of dead channels.

Abstract interpretation of the graph at its example shapes. A value is unknown (None), or a tensor
with a mask of the entries that are known; a zero that multiplies something unknown is known.
Where nothing is dead almost every value is unknown, and almost nothing is computed.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..inference.rule import bound_arguments, find_rule, op_name
from ..ir.program import Program, hint, shape_of

VIEWS = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T mT movedim unsqueeze "
    "squeeze expand expand_as broadcast_to repeat tile repeat_interleave cat concat stack split "
    "split_with_sizes chunk tensor_split unbind slice narrow select roll flip pixel_shuffle "
    "pixel_unshuffle channel_shuffle contiguous clone detach alias to _to_copy type_as dropout "
    "feature_dropout index_select reshape_as view_as swapaxes concatenate unsafe_split "
    "unsafe_chunk alpha_dropout lift_fresh_copy native_dropout".split()
)
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_")


@dataclasses.dataclass(frozen=True)
class Known:
    """A value with the mask of its input-independent entries (None: all of them)."""

    value: Tensor
    mask: Tensor | None = None

    def where(self) -> Tensor:
        """The mask, spelled out."""
        return torch.ones_like(self.value, dtype=torch.bool) if self.mask is None else self.mask

    def zero(self) -> Tensor:
        """Entries known to be zero."""
        return self.where() & (self.value == 0)


def known_values(
    program: Program, tensor_hook: Callable[[str, Tensor], Tensor]
) -> dict[fx.Node, Known | None]:
    """What is known of each node's value. `tensor_hook` masks tensors as they are fetched."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "get_attr":
                tensor = program.tensors.get(str(node.target))
                if tensor is not None:
                    values[node] = Known(tensor_hook(str(node.target), tensor.detach()))
            elif node.op == "call_function":
                try:
                    values[node] = _call(node, values)
                except Exception:  # what cannot be followed is unknown, which is always safe
                    values[node] = None
                _forget_written(node, values)
    return {n: v if isinstance(v, Known) else None for n, v in values.items()}


def _forget_written(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """An in-place op changes the values its first operand is a view of."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return
    base: Any = node.args[0]
    while isinstance(base, fx.Node):
        values[base] = None
        base = base.args[0] if base.op == "call_function" and base.args else None


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.target is operator.getitem:
        source = values.get(node.args[0])  # type: ignore[arg-type]
        return source[node.args[1]] if isinstance(source, (tuple, list)) else None  # type: ignore[index]
    name = op_name(node.target).removeprefix("aten::").rstrip("_")
    if not name:
        return None
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    known = [values.get(n) for n in tensors]
    if tensors and all(isinstance(k, Known) and k.mask is None for k in known):
        random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
        return None if random and name not in VIEWS else _wrap(_run(node, values, False))
    if not tensors:
        return _wrap(_run(node, values, False)) if not _dynamic(node) else None
    given = bound_arguments(node)
    if name in CONTRACTIONS:
        return CONTRACTIONS[name](node, given, values)
    if name in ("batch_norm", "layer_norm"):
        return _norm(node, given, values)
    if name == "embedding":
        return _embedding(node, given, values)
    if not any(isinstance(k, Known) for k in known):
        return None
    if name in VIEWS:
        return _views(_run(node, values, False), _run(node, values, True))
    if name == "mul" and len(tensors) == 2:
        return _product(node, tensors, values)
    if name == "scaled_dot_product_attention":
        return _attention(node, given, values)
    if name.startswith(POOLS):
        return _pool(node, given, values)
    rule = find_rule(node.target)
    if rule is not None and rule.function.__name__ == "pointwise":
        return _pointwise(node, tensors, values)
    return None


def _dynamic(node: fx.Node) -> bool:
    return bool(node.all_input_nodes)


def _fill(x: Any, values: dict[fx.Node, Any], masks: bool) -> Any:
    """The concrete argument of a node: unknown entries as 0 (1 in the mask of unknowns)."""
    if not isinstance(x, fx.Node):
        return x
    value = x.meta.get("val")
    if not isinstance(value, Tensor):
        return hint(value) if value is not None else None
    known = values.get(x)
    if not isinstance(known, Known):
        shape = [s or 0 for s in shape_of(value)]
        return torch.ones(shape) if masks else torch.zeros(shape, dtype=value.dtype)
    if masks:
        return (~known.where()).float()
    return known.value if known.mask is None else torch.where(
        known.mask, known.value, torch.zeros((), dtype=known.value.dtype)
    )


def _run(node: fx.Node, values: dict[fx.Node, Any], masks: bool) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _fill(n, values, masks))
    if masks and op_name(node.target) in ("aten::to", "aten::_to_copy", "aten::type_as"):
        return args[0]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _wrap(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return tuple(map(_wrap, result))
    return Known(result) if isinstance(result, Tensor) else None


def _views(value: Any, unknown: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_views(v, u) for v, u in zip(value, unknown, strict=True))
    return _partial(value, unknown == 0)


def _partial(value: Tensor, mask: Tensor) -> Known | None:
    return Known(value, mask) if bool(mask.any()) else None


def _pointwise(node: fx.Node, tensors: list[fx.Node], values: dict[fx.Node, Any]) -> Any:
    value = _run(node, values, False)
    if not isinstance(value, Tensor):
        return None
    mask = torch.ones_like(value, dtype=torch.bool)
    for n in tensors:
        mask = mask & (_fill(n, values, True) == 0)
    return _partial(value, mask)


def _product(node: fx.Node, tensors: list[fx.Node], values: dict[fx.Node, Any]) -> Any:
    value = _run(node, values, False)
    mask = torch.ones_like(value, dtype=torch.bool)
    zero = torch.zeros_like(mask)
    for n in tensors:
        mask = mask & (_fill(n, values, True) == 0)
        if isinstance(values.get(n), Known):
            zero = zero | values[n].zero()
    return _partial(torch.where(zero, torch.zeros_like(value), value), mask | zero)


def _contract(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """Result entries all of whose terms are known, or multiply an unknown by a known zero."""
    weight_node = given.get("weight")
    weight = values.get(weight_node)
    if not isinstance(weight, Known) or weight.mask is not None:
        return None
    x = given["x"]
    if not isinstance(values.get(x), Known):
        rows = weight.value.reshape(weight.value.shape[0], -1)
        if not bool((rows == 0).all(1).any()) or "transpose" in str(node.target):
            return None
    unknown = _fill(x, values, True)
    reach = (weight.value != 0).float()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n)

    def swap(n: fx.Node, masks: bool) -> Any:
        if masks and n is x:
            return unknown
        if masks and n is weight_node:
            return reach
        if masks and n is given.get("bias"):
            return None
        return _fill(n, values, False)

    def call(masks: bool) -> Tensor:
        a, k = fx.node.map_arg((args, kwargs), lambda n: swap(n, masks))
        return node.target(*a, **k)  # type: ignore[operator]

    bias = given.get("bias")
    if isinstance(bias, fx.Node) and not isinstance(values.get(bias), Known):
        return None
    mask = call(True) == 0
    return _partial(call(False), mask) if bool(mask.any()) else None


def _matmul(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """Known zeros of a matrix product: every term has a known zero factor."""
    nodes = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if len(nodes) != 2 or not any(isinstance(values.get(n), Known) for n in nodes):
        return None
    if not any(isinstance(values.get(n), Known) and bool(values[n].zero().any()) for n in nodes):
        return None
    live = []
    for n in nodes:
        known = values.get(n)
        shape = [s or 0 for s in shape_of(n.meta["val"])]
        live.append((~known.zero()).float() if isinstance(known, Known) else torch.ones(shape))
    reach = torch.matmul(live[0], live[1])
    return _partial(torch.zeros_like(reach, dtype=node.meta["val"].dtype), reach == 0)


CONTRACTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
                     "conv_transpose2d", "conv_transpose3d"), _contract),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
}


def _norm(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """A zero gamma leaves beta, whatever comes in; a batch norm also passes constants on."""
    x, name = given["x"], op_name(node.target)
    if name == "aten::batch_norm" and given.get("training"):
        return None
    weight = values.get(given.get("weight"))  # type: ignore[arg-type]
    passed = isinstance(values.get(x), Known) and name == "aten::batch_norm"
    dead = (weight.value == 0) if isinstance(weight, Known) and weight.mask is None else None
    if not passed and (dead is None or not bool(dead.any())):
        return None
    value = _run(node, values, False)
    if not isinstance(value, Tensor):
        return None
    mask = _fill(x, values, True) == 0 if passed else torch.zeros_like(value, dtype=torch.bool)
    if dead is not None:
        shape = [1, -1] + [1] * (value.dim() - 2) if name == "aten::batch_norm" else dead.shape
        mask = mask | dead.reshape(shape)
    return _partial(value, mask.expand_as(value))


def _embedding(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """Columns of a lookup table that hold one value in all rows."""
    table = values.get(given["weight"])
    if not isinstance(table, Known) or table.mask is not None:
        return None
    uniform = (table.value == table.value[:1]).all(0)
    if not bool(uniform.any()):
        return None
    shape = [s or 0 for s in shape_of(node.meta["val"])]
    return _partial(table.value[0].expand(shape).clone(), uniform.expand(shape))


def _attention(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """Attention averages values: one that is the same at every position passes through."""
    known = values.get(given["value"])
    shape = [s or 0 for s in shape_of(node.meta["val"])]
    if not isinstance(known, Known) or list(known.value.shape[:-2]) != shape[:-2]:
        return None
    uniform = known.where().all(-2) & (known.value == known.value[..., :1, :]).all(-2)
    first = known.value[..., 0, :]
    return _partial(
        first.unsqueeze(-2).expand(shape).clone(), uniform.unsqueeze(-2).expand(shape)
    )


def _pool(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """A channel that is the same number everywhere stays so, but for zero-padded averages."""
    known = values.get(given["x"])
    if not isinstance(known, Known) or isinstance(node.meta["val"], (tuple, list)):
        return None
    shape = [s or 0 for s in shape_of(node.meta["val"])]
    flat = known.value.reshape(*known.value.shape[:2], -1)
    uniform = known.where().reshape(flat.shape).all(-1) & (flat == flat[..., :1]).all(-1)
    if "avg_pool" in str(node.target) and any(_as_list(given.get("padding"))):
        uniform = uniform & (flat[..., 0] == 0)
    tail = [1] * (len(shape) - 2)
    return _partial(
        flat[..., 0].reshape(*flat.shape[:2], *tail).expand(shape).clone(),
        uniform.reshape(*flat.shape[:2], *tail).expand(shape),
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []
