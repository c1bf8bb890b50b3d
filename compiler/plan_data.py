"""A plan's JSON read with care: types, sizes and index ranges, before anything is made of it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .emit.row_values import DTYPES, is_finite
from .errors import PlanError
from .ir.drop import Drop

SIZE_LIMIT = 2**31  # of an axis, and of an attribute
ENTRIES_LIMIT = 2**28  # numbers in one table
NAMES_LIMIT = 1_000_000
_STUB = re.compile(r"(zero|input)(/[1-9]\d?)?", re.ASCII)
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def read_json(text: str) -> Any:
    """JSON without NaN and infinities. Raises ValueError."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def table(value: Any, read: Callable[[Any], Any], what: str) -> dict[str, Any]:
    """A table by name, its values read. Raises PlanError."""
    if not isinstance(value, dict) or len(value) > NAMES_LIMIT:
        raise damaged(what)
    return {name: read(inner) for name, inner in value.items()}


def entries(value: Any) -> list[int]:
    """Indices of a dimension, ascending. Raises PlanError."""
    found = indices(value)
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise damaged("indices that do not ascend")
    return found


def indices(value: Any) -> list[int]:
    """Indices of an axis, in the order of the cut tensor, each once. Raises PlanError."""
    if not isinstance(value, list) or len(value) > ENTRIES_LIMIT:
        raise damaged("indices")
    if not all(type(x) is int and 0 <= x < SIZE_LIMIT for x in value):
        raise damaged("indices")
    if len(set(value)) != len(value):
        raise damaged("indices that repeat")
    return value


def shape(value: Any) -> list[int]:
    """Sizes of a tensor. Raises PlanError."""
    if not isinstance(value, list) or len(value) > 16:
        raise damaged("a shape")
    if not all(type(x) is int and 0 <= x < SIZE_LIMIT for x in value):
        raise damaged("a shape")
    return value


def slices(value: Any, shapes: dict[str, list[int]]) -> dict[str, dict[int, list[int]]]:
    """Kept indices per axis of each tensor, inside its shape. Raises PlanError."""
    found = table(value, _axes, "slices")
    for name, axes in found.items():
        sizes = shapes.get(name)
        for axis, kept in axes.items():
            if sizes is None or axis >= len(sizes) or any(i >= sizes[axis] for i in kept):
                raise damaged(f"the slices of '{name[:80]}'")
    return found


def _axes(value: Any) -> dict[int, list[int]]:
    found = table(value, indices, "slices")
    if not all(axis.isdecimal() and len(axis) < 3 for axis in found):
        raise damaged("an axis")
    return {int(axis): kept for axis, kept in found.items()}


def changes(value: Any) -> dict[str, list[Any]]:
    """What is set on one module: {attribute: [old, new]}. Raises PlanError."""
    found = table(value, lambda x: x, "attributes")
    for name, pair in found.items():
        parts = name.split(".")
        named = all(p.isidentifier() and not p.startswith("__") for p in parts)
        if not named or not isinstance(pair, list) or len(pair) != 2:
            raise damaged(f"the attribute {name[:60]!r}")
        if not (pair[0] is None or _sizes(pair[0])) or not _sizes(pair[1]):
            raise damaged(f"the attribute {name[:60]!r}")
    return found


def _sizes(value: Any) -> bool:
    members = value if isinstance(value, list) else [value]
    return len(members) <= 4096 and all(type(x) is int and abs(x) < SIZE_LIMIT for x in members)


def stub(value: Any) -> str:
    """The form of what stands for a dropped module. Raises PlanError."""
    if not isinstance(value, str) or not _STUB.fullmatch(value):
        raise damaged(f"the stub {str(value)[:40]!r}")
    return value


def text(value: Any) -> str:
    """A name. Raises PlanError."""
    if not isinstance(value, str) or len(value) > 2_000:
        raise damaged("a name")
    return value


def flag(value: Any) -> bool:
    """Yes or no. Raises PlanError."""
    if type(value) is not bool:
        raise damaged("a flag")
    return value


def outputs(value: Any) -> list[str | int] | None:
    """The outputs that matter, as `capture` takes them. Raises PlanError."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(x) in (str, int) for x in value):
        raise damaged("outputs")
    return value


def tensor_data(tensor: Tensor) -> dict[str, Any]:
    """A small tensor as JSON values."""
    flat = tensor.detach().double().reshape(-1).tolist()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "values": [x if math.isfinite(x) else str(x) for x in flat],
    }


def tensor(data: Any) -> Tensor:
    """The tensor of `tensor_data`. Raises PlanError."""
    if not isinstance(data, dict) or set(data) != {"dtype", "shape", "values"}:
        raise damaged("a tensor")
    sizes, values = shape(data["shape"]), data["values"]
    if not isinstance(values, list) or math.prod(sizes) != len(values):
        raise damaged("a tensor")
    if not isinstance(data["dtype"], str) or data["dtype"] not in DTYPES:
        raise damaged("a tensor")
    if not all(is_finite(x) or x in tuple(_SPECIAL) for x in values):
        raise damaged("a tensor")
    plain = [_SPECIAL[x] if isinstance(x, str) else float(x) for x in values]
    try:
        made = torch.tensor(plain, dtype=torch.float64)
        return made.reshape(sizes).to(DTYPES[data["dtype"]])
    except (RuntimeError, OverflowError) as error:
        raise damaged("a tensor") from error


def drop_data(drop: Drop) -> dict[str, Any]:
    """A dropped branch as JSON values."""
    constant = None if drop.constant is None else tensor_data(drop.constant)
    return {**vars(drop), "constant": constant, "tensors": list(drop.tensors)}


def drops(value: Any) -> list[Drop]:
    """The dropped branches of `drop_data`. Raises PlanError."""
    if not isinstance(value, list) or len(value) > NAMES_LIMIT:
        raise damaged("the dropped branches")
    return [_drop(data) for data in value]


def _drop(data: Any) -> Drop:
    keys = {"name", "source", "result", "op", "constant", "axis", "tensors"}
    if not isinstance(data, dict) or set(data) != keys or not isinstance(data["tensors"], list):
        raise damaged("a dropped branch")
    if type(data["axis"]) is not int or abs(data["axis"]) > 16:
        raise damaged("a dropped branch")
    return Drop(
        **{key: text(data[key]) for key in ("name", "source", "result", "op")},
        constant=None if data["constant"] is None else tensor(data["constant"]),
        axis=data["axis"],
        tensors=tuple(map(text, data["tensors"])),
    )


def damaged(what: str) -> PlanError:
    """The error for a plan that holds what no compile writes."""
    return PlanError(
        f"the plan is damaged: {what} of no known form or range; compile the model again."
    )
