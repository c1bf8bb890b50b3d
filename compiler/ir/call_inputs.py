"""One value of a captured call: a tensor with its sizes, a number, or a constant; as JSON too."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError
from .size_terms import LARGEST, is_whole

_KINDS = (
    {torch.int32, torch.int64},
    {torch.float16, torch.bfloat16, torch.float32, torch.float64},
    {torch.complex32, torch.complex64, torch.complex128},
)
DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
INPUTS, AXES, TEXT = 4096, 64, 4096  # most of a stored description


@dataclasses.dataclass(frozen=True)
class Size:
    """`factor` * `symbol` + `offset`; without a symbol `offset` is all there is, and without both a
    factor and a symbol the size may be any (`free`)."""

    offset: int = 0
    symbol: str = ""
    factor: int = 1
    free: bool = False


@dataclasses.dataclass(frozen=True)
class TensorInput:
    """A tensor: its argument's name, its dtype, the size of each axis."""

    name: str
    dtype: torch.dtype
    axes: tuple[Size, ...]


@dataclasses.dataclass(frozen=True)
class NumberInput:
    """An int that the graph takes as a size."""

    name: str
    size: Size


@dataclasses.dataclass(frozen=True)
class ConstantInput:
    """A value that was captured into the graph. `kind`: "plain" (bool, int, float, str, None),
    "torch" (a dtype or device, by its text) or "other" (not compared)."""

    name: str
    value: bool | int | float | str | None
    kind: str = "plain"


Input = TensorInput | NumberInput | ConstantInput


def same(spec: ConstantInput, value: Any) -> bool:
    if spec.kind == "other":
        return not isinstance(value, Tensor) and value is not None
    if spec.kind == "torch":
        return isinstance(value, _NAMED) and str(value) == spec.value
    if isinstance(value, float) and isinstance(spec.value, float) and math.isnan(spec.value):
        return math.isnan(value)
    return type(value) is type(spec.value) and value == spec.value


def interchangeable(given: torch.dtype, captured: torch.dtype) -> bool:
    """Whether torch treats the two alike, or says itself that they do not fit."""
    return any(given in kind and captured in kind for kind in _KINDS)


def constant(name: str, value: Any) -> ConstantInput:
    """The description of a value that is no tensor."""
    if isinstance(value, str) and len(value) > TEXT:
        return ConstantInput(name, None, "other")
    if value is None or type(value) in (bool, int, float, str):
        return ConstantInput(name, value)
    if isinstance(value, _NAMED):
        return ConstantInput(name, str(value), "torch")
    return ConstantInput(name, None, "other")


def shown(value: Any, kind: str = "plain") -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if kind == "torch":
        return str(value)
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"


def dtype_name(value: torch.dtype) -> str:
    return str(value).removeprefix("torch.")


def sizes_of(spec: Input) -> tuple[Size, ...]:
    if isinstance(spec, TensorInput):
        return spec.axes
    return (spec.size,) if isinstance(spec, NumberInput) else ()


def input_data(spec: Input) -> dict[str, Any]:
    if isinstance(spec, TensorInput):
        axes = [_size_data(size) for size in spec.axes]
        return {"name": spec.name, "dtype": dtype_name(spec.dtype), "axes": axes}
    if isinstance(spec, NumberInput):
        return {"name": spec.name, "size": _size_data(spec.size)}
    value = spec.value
    if isinstance(value, float):
        return {"name": spec.name, "constant": repr(value), "kind": "float"}
    if type(value) is int and abs(value) > LARGEST:
        return {"name": spec.name, "constant": str(value), "kind": "int"}
    return {"name": spec.name, "constant": value, "kind": spec.kind}


def _size_data(size: Size) -> Any:
    """An int, [factor, symbol, offset], or None for any size."""
    if size.free:
        return None
    return [size.factor, size.symbol, size.offset] if size.symbol else size.offset


def read_input(data: Any) -> Input:
    valid(isinstance(data, dict))
    if "axes" in data:
        require_keys(data, "name", "dtype", "axes")
        valid(isinstance(data["dtype"], str) and data["dtype"] in DTYPES)
        axes = tuple(_size(item) for item in read_list(data["axes"], AXES))
        return TensorInput(read_text(data["name"]), DTYPES[data["dtype"]], axes)
    if "size" in data:
        require_keys(data, "name", "size")
        return NumberInput(read_text(data["name"]), _size(data["size"]))
    require_keys(data, "name", "constant", "kind")
    name, value, kind = read_text(data["name"]), data["constant"], data["kind"]
    valid(kind in ("plain", "torch", "other", "float", "int"))
    if kind in ("float", "int"):
        valid(isinstance(value, str) and len(value) < 400)
        try:
            return ConstantInput(name, float(value) if kind == "float" else int(value))
        except ValueError:
            valid(False)
    if isinstance(value, str):
        return ConstantInput(name, read_text(value, plain=False), kind)
    valid(value is None or isinstance(value, bool) or is_whole(value))
    return ConstantInput(name, value, kind)


def _size(data: Any) -> Size:
    if data is None:
        return Size(free=True)
    if is_whole(data, 0):
        return Size(data)
    valid(isinstance(data, list) and len(data) == 3)
    factor, symbol, offset = data
    valid(is_whole(factor, 1) and is_whole(offset))
    valid(isinstance(symbol, str) and symbol.isidentifier() and symbol.isascii())
    return Size(offset, read_text(symbol), factor)


def read_text(value: Any, plain: bool = True) -> str:
    valid(isinstance(value, str) and len(value) <= TEXT)
    valid(not plain or value.isprintable())
    return value


def read_list(value: Any, most: int) -> list[Any]:
    valid(isinstance(value, list) and len(value) <= most)
    return value


def require_keys(data: Any, *keys: str) -> None:
    valid(isinstance(data, dict) and set(data) == set(keys))


def valid(condition: Any) -> None:
    if not condition:
        raise ArtifactError(
            "the stored description of the call is none: the artifact is damaged; compile again."
        )
