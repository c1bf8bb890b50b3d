"""Which entries of which values are the same whatever the input: constants of dead channels.

Abstract interpretation of the graph at its example shapes. A value is unknown (None), or a tensor
with a mask of the entries that are known; a zero that multiplies something unknown is known.
Where nothing is dead almost every value is unknown, and almost nothing is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..inference.rule import bound_arguments, find_rule, op_name
from ..ir.memory import memory_owners, written
from ..ir.program import Program, hint, shape_of

VIEWS = frozenset(
    (
        "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T mT movedim "
        "unsqueeze squeeze expand expand_as broadcast_to repeat tile repeat_interleave cat "
        "concat stack split split_with_sizes chunk tensor_split unbind slice narrow select "
        "roll flip pixel_shuffle pixel_unshuffle channel_shuffle contiguous clone detach "
        "alias to _to_copy type_as dropout feature_dropout index_select reshape_as view_as "
        "swapaxes concatenate unsafe_split unsafe_chunk alpha_dropout lift_fresh_copy "
        "native_dropout pad constant_pad_nd im2col"
    ).split()
)
REDUCTIONS = frozenset(["sum", "mean", "amax"])  # of marks that are 0 or 1: 0 where all are 0
CHANNEL_NORMS = frozenset(["batch_norm", "group_norm", "instance_norm"])
NORMS = CHANNEL_NORMS | {"layer_norm", "rms_norm"}
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_")


class Known:
    """A value with the mask of its input-independent entries (None: all of them). A value given as
    a function is made anew at each look: a masked copy of every weight is more than there is room
    for."""

    __slots__ = ("_value", "mask")

    def __init__(self, value: Tensor | Callable[[], Tensor], mask: Tensor | None = None) -> None:
        self._value = value
        self.mask = mask

    @property
    def value(self) -> Tensor:
        """The tensor; what lies outside the mask means nothing."""
        return self._value if isinstance(self._value, Tensor) else self._value()

    def where(self) -> Tensor:
        """The mask, spelled out."""
        return torch.ones_like(self.value, dtype=torch.bool) if self.mask is None else self.mask

    def zero(self) -> Tensor:
        """Entries known to be zero."""
        zero = self.value == 0
        return zero if self.mask is None else zero & self.mask


def known_values(
    program: Program, tensor_hook: Callable[[str, Tensor], Tensor]
) -> dict[fx.Node, Known | None]:
    """What is known of each node's value. `tensor_hook` masks tensors as they are fetched."""
    values: dict[fx.Node, Any] = {}
    owners = memory_owners(program.graph)
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "get_attr":
                tensor = program.tensors.get(str(node.target))
                if tensor is not None:
                    values[node] = Known(partial(tensor_hook, str(node.target), tensor.detach()))
            elif node.op == "call_function":
                changed = {owners[base] for base in written(node)}
                if changed:  # everything that views the same memory changes
                    result = _attempt(node, values)
                    values = {n: v for n, v in values.items() if owners[n] not in changed}
                    values[node] = result
                else:
                    values[node] = _attempt(node, values)
    return {n: v if isinstance(v, Known) else None for n, v in values.items()}


def _attempt(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    try:
        return _call(node, values)
    except Exception:  # what cannot be followed is unknown, which is always safe
        return None


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
        seeded = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
        if not seeded or (name in VIEWS and not _random(bound_arguments(node))):
            return _wrap(_run(node, values, False))
    if not tensors:
        return _wrap(_run(node, values, False)) if not _dynamic(node) else None
    given = bound_arguments(node)
    if name in CONTRACTIONS:
        return _contract(node, given, values)
    if name in NORMS:
        return _norm(node, given, values)
    if name == "embedding":
        return _embedding(node, given, values)
    if not any(isinstance(k, Known) for k in known):
        return None
    if name in VIEWS or name in REDUCTIONS:
        result = _views(_run(node, values, False), _run(node, values, True))
        return _zeros(result) if _random(given) else result
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


def _random(given: dict[str, Any]) -> bool:
    """Whether an op drops entries at random (dropout captured in train mode): zeros stay zero."""
    return bool(given.get("train") or given.get("dropout_p"))


def _zeros(known: Any) -> Any:
    if not isinstance(known, Known):
        return None
    return _partial(torch.zeros_like(known.value), known.zero())


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
        dtype = torch.float32 if masks else value.dtype
        return torch.full(shape, int(masks), dtype=dtype, device=value.device)
    if masks:
        return (~known.where()).float()
    if known.mask is None:
        return known.value
    return torch.where(known.mask, known.value, torch.zeros_like(known.value))


def _run(node: fx.Node, values: dict[fx.Node, Any], masks: bool) -> Any:
    kept = written(node)  # what is known of those operands, and the model's memory, stay

    def fill(x: fx.Node) -> Any:
        value = _fill(x, values, masks)
        return value.clone() if x in kept else value

    given: Any = map_arg((node.args, node.kwargs), fill)
    args, kwargs = given
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
    """Result entries all of whose terms are known, or have a factor that is known to be zero."""
    left, right, addend = _operands(node, given)
    if left is None or right is None or left is right:
        return None
    sides = [values.get(left), values.get(right)]
    if not any(isinstance(k, Known) and bool(k.zero().any()) for k in sides):
        if not all(isinstance(k, Known) for k in sides):
            return None
    bias = values.get(addend) if addend is not None else None
    if addend is not None and (not isinstance(bias, Known) or bias.mask is not None):
        return None

    def run(a: Tensor, b: Tensor, extra: Any) -> Tensor:
        swap = {left: a, right: b, addend: extra}
        arguments: Any = map_arg(
            (node.args, node.kwargs), lambda n: swap[n] if n in swap else _fill(n, values, False)
        )
        return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]

    def marks(which: str) -> Tensor:
        extra = None if "bias" in given else torch.zeros((), device=_device(node))
        return run(_indicator(left, values, which), _indicator(right, values, which), extra)

    unknown = marks("live")  # a count of terms
    if all(isinstance(k, Known) for k in sides):
        unknown = unknown - marks("known")
    mask = unknown.abs() < 0.5
    if not bool(mask.any()):
        return None
    added = bias.value if isinstance(bias, Known) else None
    return _partial(run(_fill(left, values, False), _fill(right, values, False), added), mask)


def _operands(node: fx.Node, given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The two factors of a contraction and what is added to their product."""
    if given.get("tensors") is not None:  # einsum
        pair = list(given["tensors"])
        return (*pair, None) if len(pair) == 2 else (None, None, None)
    for left, right, addend in OPERANDS:
        if given.get(left) is not None and given.get(right) is not None:
            extra = given.get(addend) if addend else None
            return given[left], given[right], extra
    return None, None, None


def _indicator(node: fx.Node, values: dict[fx.Node, Any], which: str) -> Tensor:
    """1 where an entry may count ("live": not known to be zero; "known": known, not zero)."""
    known = values.get(node)
    if not isinstance(known, Known):
        shape = [s or 0 for s in shape_of(node.meta["val"])]
        return torch.full(shape, float(which == "live"), device=_device(node))
    if which == "live":
        return (~known.zero()).float()
    return (known.where() & (known.value != 0)).float()


def _device(node: fx.Node) -> torch.device:
    return node.meta["val"].device


OPERANDS = (
    ("mat1", "mat2", "x"),
    ("batch1", "batch2", "x"),
    ("mat", "vec", "x"),
    ("x", "weight", "bias"),
    ("x", "other", ""),
    ("x", "mat2", ""),
    ("x", "vec", ""),
)
CONTRACTIONS = frozenset(
    (
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
        "matmul bmm mm mv addmm baddbmm addmv einsum"
    ).split()
)


def _norm(node: fx.Node, given: dict[str, Any], values: dict[fx.Node, Any]) -> Any:
    """A zero gamma leaves beta, whatever comes in; a batch norm also passes constants on."""
    x, name = given["x"], op_name(node.target).removeprefix("aten::")
    if given.get("training"):
        return None
    weight = values.get(given.get("weight"))  # type: ignore[arg-type]
    passed = isinstance(values.get(x), Known) and name == "batch_norm"
    dead = (weight.value == 0) if isinstance(weight, Known) and weight.mask is None else None
    if not passed and (dead is None or not bool(dead.any())):
        return None
    value = _run(node, values, False)
    if not isinstance(value, Tensor):
        return None
    mask = _fill(x, values, True) == 0 if passed else torch.zeros_like(value, dtype=torch.bool)
    if dead is not None:
        shape = [1, -1] + [1] * (value.dim() - 2) if name in CHANNEL_NORMS else dead.shape
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
    if not isinstance(known, Known):
        return None
    uniform = known.where().all(-2) & (known.value == known.value[..., :1, :]).all(-2)
    first = known.value[..., 0, :]
    if given.get("enable_gqa"):
        repeat = shape[-3] // known.value.shape[-3]
        uniform, first = (t.repeat_interleave(repeat, -2) for t in (uniform, first))
    if list(first.shape[:-1]) != shape[:-2]:
        return None
    result = _partial(
        first.unsqueeze(-2).expand(shape).clone(), uniform.unsqueeze(-2).expand(shape)
    )
    return _zeros(result) if _random(given) else result


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
