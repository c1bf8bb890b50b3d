"""Conditions on sizes as plain data: small expressions over named sizes, stored and evaluated.

An expression is an int, the name of a size, or a list [operator, operand, ...]. There is no power
and the number of nodes is bounded, so that no stored expression takes long or grows large.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ArtifactError

LARGEST = 1 << 40  # of a stored size or number
NODES = 100  # of one expression

Expression = Any  # int | str | tuple[str, Expression, ...]

_OPERATORS: dict[str, Callable[..., int]] = {
    "+": lambda *x: sum(x),
    "*": lambda *x: math.prod(x),
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
}
_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """`left relation right`, where `relation` is one of ==, !=, <=, <."""

    relation: str
    left: Expression
    right: Expression

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true of these sizes; one that cannot be evaluated is not."""
        try:
            pair = evaluate(self.left, sizes), evaluate(self.right, sizes)
            return _RELATIONS[self.relation](*pair)
        except ZeroDivisionError:
            return False

    def text(self, names: Mapping[str, str]) -> str:
        """For people, with sizes by these names."""
        return f"{_text(self.left, names)} {self.relation} {_text(self.right, names)}"

    def to_json(self) -> list[Any]:
        return [self.relation, _listed(self.left), _listed(self.right)]


def condition_from_json(data: Any, names: set[str]) -> Condition:
    """Raises ArtifactError unless `data` is a condition on these names and nothing else."""
    if not isinstance(data, list) or len(data) != 3 or data[0] not in list(_RELATIONS):
        raise ArtifactError("a stored condition on sizes is none: the artifact is damaged.")
    left, right = (_checked(part, names, [NODES]) for part in data[1:])
    return Condition(data[0], left, right)


def evaluate(expression: Expression, sizes: Mapping[str, int]) -> int:
    """The value of an expression over sizes by name."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return sizes[expression]
    name, *operands = expression
    return _OPERATORS[name](*(evaluate(x, sizes) for x in operands))


def names_in(expression: Expression) -> set[str]:
    """The sizes an expression speaks of."""
    if isinstance(expression, str):
        return {expression}
    if isinstance(expression, int):
        return set()
    return {name for part in expression[1:] for name in names_in(part)}


def is_whole(value: Any, low: int = -LARGEST, high: int = LARGEST) -> bool:
    """Whether a stored value is an int (and no bool) within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _checked(data: Any, names: set[str], left: list[int]) -> Expression:
    left[0] -= 1
    if left[0] < 0:
        raise ArtifactError("a stored condition on sizes is too long: the artifact is damaged.")
    if is_whole(data):
        return data
    if isinstance(data, str) and data in names:
        return data
    if isinstance(data, list) and len(data) > 2 and data[0] in list(_OPERATORS):
        if data[0] not in ("//", "%") or len(data) == 3:
            return (data[0], *(_checked(part, names, left) for part in data[1:]))
    raise ArtifactError("a stored condition on sizes is none: the artifact is damaged.")


def _listed(expression: Expression) -> Any:
    if not isinstance(expression, tuple):
        return expression
    return [expression[0], *(_listed(part) for part in expression[1:])]


def _text(expression: Expression, names: Mapping[str, str]) -> str:
    if not isinstance(expression, tuple):
        return (
            names.get(expression, str(expression))
            if isinstance(expression, str)
            else str(expression)
        )
    name, *operands = expression
    parts = [_text(part, names) for part in operands]
    return f"{name}({', '.join(parts)})" if name.isalpha() else f"({f' {name} '.join(parts)})"
