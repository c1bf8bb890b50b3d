"""Which example inputs are captured."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn, strided

from ..errors import CaptureError
from ..option_types import shown

_COMPLEX = (
    "complex, which is neither proven nor stored: pass torch.view_as_real(x), and let forward "
    "begin with torch.view_as_complex"
)


def positional(args: Any) -> tuple[Any, ...]:
    """The positional arguments of the example call: a tuple or list of them, one tensor, or None
    for none. Raises CaptureError with the remedy."""
    if args is None:
        return ()
    if isinstance(args, Tensor):
        return (args,)
    if isinstance(args, (tuple, list)):
        return tuple(args)
    remedy = "pass (x,), or kwargs={...} for arguments by name"
    if isinstance(args, Mapping):
        remedy = "pass a dict of arguments as kwargs="
    elif hasattr(args, "__array__"):
        remedy = "pass torch.as_tensor(x)"
    raise CaptureError(f"args is a tuple of forward's arguments, not {shown(args)}: {remedy}.")


def named_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> Any:
    """`dynamic_shapes` as torch.export takes them: a dict has all inputs, None for what it leaves
    out. Raises CaptureError, listing the inputs, for another name or too many."""
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*args, **kwargs).arguments
        inputs = []
        for name in bound:
            rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            inputs += list(bound[name]) if rest else [name]
    except TypeError:  # said by what calls the model
        return shapes
    if isinstance(shapes, Mapping):
        others = list(signature.parameters)
        unknown = [name for name in shapes if name not in inputs]
        if unknown:
            known = unknown[0] in others
            raise CaptureError(
                f"dynamic_shapes names {unknown[0]!r}, which is no input of this call"
                f"{' (it is not passed)' if known else ''}: name some of {', '.join(inputs)}."
            )
        call = dict(zip(inputs, args, strict=False)) | kwargs
        for name, axes in shapes.items():
            tensor, given = call.get(name), axes if isinstance(axes, Mapping) else {}
            if isinstance(tensor, Tensor) and not all(a in range(tensor.dim()) for a in given):
                raise CaptureError(
                    f"dynamic_shapes names the axes {list(given)} of {name!r}, which has "
                    f"{tensor.dim()}: number them from 0 to {tensor.dim() - 1}."
                )
        return {name: shapes.get(name) for name in inputs}
    if isinstance(shapes, (tuple, list)) and len(shapes) == len(args) + len(kwargs):
        return shapes
    raise CaptureError(
        f"dynamic_shapes is a dict by the names of inputs, or a tuple with an entry for each of "
        f"{', '.join(inputs)}, not {shown(shapes)}."
    )


def require_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise CaptureError, naming the input and the remedy, for what a graph cannot be captured
    with: caches, meta tensors beside real weights, no rows, nested, sparse or quantised tensors,
    complex values."""
    on_meta = any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    named = {f"positional input {i}": value for i, value in enumerate(args)}
    named |= {f"input '{name}'": value for name, value in kwargs.items()}
    for name, value in named.items():
        if _is_cache(value):
            raise CaptureError(
                f"{name} is a key-value cache ({type(value).__name__}): leave it out and pass "
                "use_cache=False; the smaller model takes caches as the original does."
            )
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                _require(name, leaf, on_meta)
            elif hasattr(leaf, "__array__") and getattr(leaf, "ndim", 0):
                raise CaptureError(f"{name} is a {type(leaf).__name__}: pass torch.as_tensor(x).")


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length") and not isinstance(value, Tensor)


def _require(name: str, tensor: Tensor, on_meta: bool) -> None:
    if tensor.is_nested:
        wrong = "a nested tensor: pass a padded one, as in torch.nested.to_padded_tensor(x, 0.0)"
    elif tensor.layout is not strided:
        wrong = "a sparse tensor: pass x.to_dense()"
    elif tensor.is_quantized:
        wrong = "a quantised tensor: pass x.dequantize()"
    elif tensor.is_complex():
        wrong = _COMPLEX
    elif tensor.is_meta and not on_meta:
        wrong = (
            "on the meta device, which holds no values, and the model is not: pass values, as in "
            "torch.zeros(x.shape, dtype=x.dtype)"
        )
    elif tensor.dim() and tensor.shape[0] == 0:
        wrong = f"empty, of shape {list(tensor.shape)}: pass two samples or more"
    else:
        return
    raise CaptureError(f"{name} is {wrong}.")
