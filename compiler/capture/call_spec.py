"""What torch found out about the sizes of a call, as a CallSpec."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from ..ir.call_inputs import NumberInput, Size, TensorInput, constant
from ..ir.call_spec import CallSpec, Range
from ..ir.key_paths import leaves_with_path
from ..ir.program import is_symbolic
from ..ir.size_terms import LARGEST, NODES, Condition, Expression

UNBOUNDED = 1 << 31  # torch's own "no end" comes in several sizes, all beyond this
CONDITIONS = 64
_RELATIONS = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.Le: "<=",
    sympy.Lt: "<",
}
_OPERATORS = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Max": "max",
    "Min": "min",
}
_TORCH = os.path.dirname(torch.__file__) + os.sep
_LAYERS = os.path.join(_TORCH, "nn") + os.sep


def call_spec_of(
    values: Sequence[Any],
    example: Sequence[Any],
    names: Sequence[str],
    range_constraints: Mapping[Any, Any],
) -> CallSpec:
    """The description of a captured call.

    `values`: what export says of each flat input (fake tensors with symbolic sizes); `example`:
    what was passed for it.

    Lower ends are kept only where a line of the model asked for them: torch takes sizes of 0 and 1
    as never occurring, whatever the model does, and its kernels' own conditions (contiguity, 1 of a
    size less 2) are met by the ops of the graph at any size.
    """
    notes: list[str] = []
    inputs: list[Any] = []
    symbols: dict[Any, str] = {}
    for value, given, name in zip(values, example, names, strict=True):
        if isinstance(given, Tensor) and isinstance(value, Tensor):
            axes = tuple(_size(size, symbols) for size in value.shape)
            inputs.append(TensorInput(name, value.dtype, axes))
            for axis, size in enumerate(axes):
                if size.free:
                    notes.append(
                        f"axis {axis} of '{name}' depends on several sizes, and is not checked when"
                        " the graph is called"
                    )
        elif is_symbolic(value) and hasattr(value, "node"):
            inputs.append(NumberInput(name, _size(value, symbols)))
        else:
            inputs.append(constant(name, given))
    guards = _guards(values)
    ranges = _ranges(range_constraints, guards, symbols)
    conditions = _conditions(guards, symbols, notes)
    return CallSpec(tuple(inputs), ranges, tuple(conditions), tuple(notes))


def input_names(argument_names: Sequence[str], arguments: Sequence[Any]) -> list[str]:
    """The names of a call's flat inputs: the argument, and the way to the value in it."""
    return [
        _printable(f"{name}{''.join(f'[{key!r}]' for key in path)}")
        for name, value in zip(argument_names, arguments, strict=True)
        for path, _ in leaves_with_path(value)
    ]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _size(size: Any, symbols: dict[Any, str]) -> Size:
    """A size as factor * symbol + offset, symbols named in the order in which they occur."""
    if not is_symbolic(size):
        return Size(int(size))
    line = _line(size.node.expr)
    if line is None:
        return Size(free=True)
    symbol, factor, offset = line
    return Size(offset, symbols.setdefault(symbol, f"s{len(symbols)}"), factor)


def _line(expression: Any) -> tuple[Any, int, int] | None:
    """(symbol, factor, offset) of an expression affine in one symbol, with a positive factor."""
    if len(expression.free_symbols) != 1:
        return None
    (symbol,) = expression.free_symbols
    try:
        factor, offset = sympy.Poly(expression, symbol).all_coeffs()
    except (ValueError, sympy.PolynomialError):  # of another degree, or no polynomial
        return None
    if not (factor.is_Integer and offset.is_Integer and 0 < factor <= LARGEST):
        return None
    return symbol, int(factor), int(offset)


def _guards(values: Sequence[Any]) -> list[tuple[Any, bool]]:
    """(condition that capture took as true, whether a line of the model asked)."""
    for value in values:
        for size in getattr(value, "shape", (value,)):
            if is_symbolic(size) and hasattr(size, "node"):
                found = getattr(size.node.shape_env, "guards", ())
                return [(guard.expr, _by_model(guard)) for guard in found]
    return []


def _by_model(guard: Any) -> bool:
    """Whether the line that compared sizes stands outside torch, or in its layers."""
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    path = str(getattr(place, "filename", place) or "")
    return not path.startswith(_TORCH) or path.startswith(_LAYERS)


def _ranges(
    constraints: Mapping[Any, Any], guards: list[tuple[Any, bool]], symbols: dict[Any, str]
) -> dict[str, Range]:
    low: dict[Any, int] = {}
    high: dict[Any, int] = {}
    for expression, span in constraints.items():
        expression = getattr(getattr(expression, "node", None), "expr", expression)
        line = _line(expression)
        if line is None or line[0] not in symbols:
            continue
        symbol, factor, offset = line
        upper, lower = _end(span.upper), _end(span.lower)
        if upper is not None:
            high[symbol] = min(high.get(symbol, UNBOUNDED), (upper - offset) // factor)
        if lower is not None:
            low[symbol] = max(low.get(symbol, 0), -((offset - lower) // factor))
    found: dict[str, Range] = {}
    for symbol, name in symbols.items():
        lower = _asked_low(symbol, low.get(symbol, 0), guards)
        end = high.get(symbol)
        if lower is not None or end is not None:
            found[name] = Range(lower, end, lower is not None or _branches(symbol, end, guards))
    return found


def _end(value: Any) -> int | None:
    try:
        end = int(value)
    except (TypeError, ValueError, OverflowError, AttributeError):  # an infinity of torch's own
        return None
    return end if abs(end) < UNBOUNDED else None


def _asked_low(symbol: Any, low: int, guards: list[tuple[Any, bool]]) -> int | None:
    """The lower end that a line of the model set, or the user's own Dim; None for torch's."""
    if low <= 2:
        return None
    about = [(g, asked) for g, asked in guards if symbol in g.free_symbols]
    if not about:  # nothing compared it: it was given with the dynamic shapes
        return low
    own = [g for g, asked in about if asked and len(g.free_symbols) == 1]
    for value in range(min(low, 4096), 2, -1):  # the smallest size that the model's lines allow
        if any(
            g.subs(symbol, value - 1) == sympy.false for g in own if not isinstance(g, sympy.Ne)
        ):
            return value
    return None


def _branches(symbol: Any, high: int | None, guards: list[tuple[Any, bool]]) -> bool:
    """Whether a line of the model, or the user's own Dim, set the upper end of a range."""
    about = [(g, asked) for g, asked in guards if g.free_symbols == {symbol}]
    if high is None or not about:
        return True
    beyond = [g for g, asked in about if asked and not isinstance(g, sympy.Ne)]
    return any(g.subs(symbol, high + 1) == sympy.false for g in beyond)


def _conditions(
    guards: list[tuple[Any, bool]], symbols: dict[Any, str], notes: list[str]
) -> list[Condition]:
    """What lines of the model compared that is no plain range of one size."""
    found: list[Condition] = []
    for guard, asked in guards:
        names = guard.free_symbols
        if not asked or not names or not names <= symbols.keys():
            continue
        condition = _condition(guard, symbols)
        if condition is None:
            notes.append(f"the model also compared sizes in a way that is not checked: {guard}")
        elif condition not in found and not _is_range(guard, condition):
            found.append(condition)
    return found[:CONDITIONS]


def _is_range(guard: Any, condition: Condition) -> bool:
    """Whether the range of its symbol says as much, or it only tells 0 and 1 from other sizes."""
    if len(guard.free_symbols) != 1:
        return False
    if condition.relation in ("<=", "<"):
        return _line(guard.lhs - guard.rhs) is not None or _line(guard.rhs - guard.lhs) is not None
    line = _line(guard.lhs - guard.rhs) or _line(guard.rhs - guard.lhs)
    if condition.relation != "!=" or line is None:
        return False
    _, factor, offset = line
    return -offset % factor != 0 or -offset // factor in (0, 1)


def _condition(guard: Any, symbols: dict[Any, str]) -> Condition | None:
    swapped = {sympy.Ge: sympy.Le, sympy.Gt: sympy.Lt}
    kind, sides = guard.func, guard.args
    if kind in swapped:
        kind, sides = swapped[kind], sides[::-1]
    if kind not in _RELATIONS:
        return None
    left, right = (_expression(side, symbols, [NODES]) for side in sides)
    if left is None or right is None:
        return None
    return Condition(_RELATIONS[kind], left, right)


def _expression(value: Any, symbols: dict[Any, str], left: list[int]) -> Expression:
    """A sympy expression as plain data; None where it holds more than that has words for."""
    left[0] -= 1
    if left[0] < 0:
        return None
    if value.is_Integer:
        return int(value) if abs(int(value)) <= LARGEST else None
    if value.is_Symbol:
        return symbols.get(value)
    if value.func.__name__ == "Pow" and value.args[1].is_Integer and 2 <= value.args[1] <= 4:
        operator, args = "*", [value.args[0]] * int(value.args[1])
    else:
        operator, args = _OPERATORS.get(value.func.__name__), list(value.args)
    parts = [_expression(part, symbols, left) for part in args]
    if operator is None or len(parts) < 2 or any(part is None for part in parts):
        return None
    return (operator, *parts)
