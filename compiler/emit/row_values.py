"""Arguments of a graph's nodes as plain JSON values, and back.

None, booleans, integers, words and finite floats are themselves, a list is a list; anything else is
an object of one key that says what it is: {"node": 3}, {"tuple": [...]}, {"dtype": "float32"}.
"""

from __future__ import annotations

import keyword
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import ArtifactError

INTEGER_LIMIT = 2**63
DEPTH_LIMIT = 16  # of containers in one argument
_WORD = re.compile(r"[A-Za-z_]{0,40}")  # rounding modes, paddings, reductions, device types
_EQUATION = re.compile(r"[A-Za-z .,>-]{0,200}")  # of einsum
_KEYWORD = re.compile(r"[A-Za-z]\w{0,60}", re.ASCII)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta)(:\d{1,3})?")


def _constants(kind: type) -> dict[str, Any]:
    return {name: x for name, x in sorted(vars(torch).items()) if type(x) is kind}


DTYPES: Mapping[str, torch.dtype] = _constants(torch.dtype)
LAYOUTS: Mapping[str, torch.layout] = _constants(torch.layout)
MEMORY_FORMATS: Mapping[str, torch.memory_format] = _constants(torch.memory_format)
_TABLES = {"dtype": DTYPES, "layout": LAYOUTS, "memory_format": MEMORY_FORMATS}
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_row(value: Any, index: Mapping[fx.Node, int], foreign: list[Any] | None = None) -> Any:
    """A node's argument as a plain value; nodes by their `index`.

    `foreign`: takes what is no plain value, which the row then names by its place in it; without
    one that is refused. Raises ArtifactError.
    """
    if value is None or isinstance(value, (bool, int)) or type(value) is str:
        plain = _plain(value)
    elif isinstance(value, float):
        plain = _float(value)
    elif isinstance(value, complex):
        plain = {"complex": [_float(value.real), _float(value.imag)]}
    elif isinstance(value, fx.Node):
        plain = {"node": index[value]}
    elif isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        plain = {"slice": [to_row(x, index, foreign) for x in parts]}
    elif isinstance(value, list):
        plain = [to_row(x, index, foreign) for x in value]
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        plain = {"tuple": [to_row(x, index, foreign) for x in value]}
    elif isinstance(value, dict) and all(type(key) is str for key in value):
        plain = {"dict": [[key, to_row(x, index, foreign)] for key, x in value.items()]}
    elif value is Ellipsis:
        plain = {"ellipsis": True}
    elif isinstance(value, torch.device):
        plain = {"device": str(value)}
    else:
        plain = _constant(value)
    if plain is _NOT_PLAIN:
        if foreign is None:
            raise ArtifactError(
                f"the graph calls an operator with {str(value)[:80]!r} ({type(value).__name__}), "
                "which no artifact holds: pass tensors, numbers, lists and tuples."
            )
        foreign.append(value)
        return {"foreign": len(foreign) - 1}
    return plain


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < INTEGER_LIMIT else _NOT_PLAIN
    return value if _WORD.fullmatch(value) or _EQUATION.fullmatch(value) else _NOT_PLAIN


def _float(value: float) -> Any:
    if math.isfinite(value):
        return float(value)
    return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _constant(value: Any) -> Any:
    for kind, table in _TABLES.items():
        name = next((name for name, known in table.items() if known is value), None)
        if name is not None:
            return {kind: name}
    return _NOT_PLAIN


def from_row(
    row: Any,
    nodes: Sequence[fx.Node],
    place: Callable[[str], torch.device],
    foreign: Sequence[Any] = (),
    depth: int = 0,
) -> Any:
    """The argument that a row stands for, in a graph that has `nodes` so far.

    `place`: the device that one of the stored name shall be. Raises ArtifactError for what
    `to_row` does not write.
    """
    if depth > DEPTH_LIMIT:
        raise refused("arguments nested that deep")
    if row is None or isinstance(row, (bool, float)):
        return row
    if isinstance(row, int):
        if abs(row) >= INTEGER_LIMIT:
            raise refused("a number of that size")
        return row
    if isinstance(row, str):
        if not (_WORD.fullmatch(row) or _EQUATION.fullmatch(row)):
            raise refused(f"the text {row[:40]!r}")
        return row

    def inner(x: Any) -> Any:
        return from_row(x, nodes, place, foreign, depth + 1)

    if isinstance(row, list):
        return [inner(x) for x in row]
    if not isinstance(row, dict) or len(row) != 1:
        raise refused(f"{str(row)[:40]!r}")
    ((kind, value),) = row.items()
    if kind in _TABLES:
        if not isinstance(value, str) or value not in _TABLES[kind]:
            raise refused(f"the {kind} {str(value)[:40]!r}")
        return _TABLES[kind][value]
    if kind == "node":
        if type(value) is not int or not 0 <= value < len(nodes):
            raise refused("a reference to no earlier row")
        return nodes[value]
    if kind == "float" and isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if kind == "device" and isinstance(value, str) and _DEVICE.fullmatch(value):
        return place(value)
    if kind == "ellipsis" and value is True:
        return Ellipsis
    if kind == "foreign" and type(value) is int and 0 <= value < len(foreign):
        return foreign[value]
    if isinstance(value, list):
        parts = [inner(x) for x in value] if kind != "dict" else value
        if kind == "tuple":
            return tuple(parts)
        if kind == "slice" and len(parts) == 3:
            return slice(*parts)
        if kind == "complex" and len(parts) == 2 and all(isinstance(x, float) for x in parts):
            return complex(*parts)
        if kind == "dict" and all(_is_pair(x) for x in value):
            return {key: inner(x) for key, x in value}
    raise refused(f"{str(row)[:40]!r}")


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return _KEYWORD.fullmatch(value[0]) is not None and not keyword.iskeyword(value[0])


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float holds, and no flag: an integer may be too large."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def refused(what: str) -> ArtifactError:
    """The error for a graph that holds what no captured model does."""
    return ArtifactError(
        f"the stored graph has {what} where a captured model has none: it is damaged or forged; "
        "compile the model again."
    )
