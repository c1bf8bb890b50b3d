"""Whether an option of a pass has the type that its field takes, as far as annotations say."""

from __future__ import annotations

import collections.abc
import numbers
import types
import typing
from typing import Any

from .errors import PlanError

_NUMBERS = {int: numbers.Integral, float: numbers.Real}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "",
    collections.abc.Callable: "a function (in Python, not in a recipe)",
    collections.abc.Mapping: "a table",
    collections.abc.Sequence: "a list",
    collections.abc.Iterable: "batches (in Python, not in a recipe)",
}


def check_options(name: str, cls: type, options: dict[str, Any]) -> None:
    """Raise PlanError naming the pass, the field, the value and what the field takes.

    A field whose annotation cannot be read, in a pass of another package, takes everything.
    """
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):  # names that are imported for type checkers only
        return
    for field, value in options.items():
        if field in hints and not takes(hints[field], value):
            shown = " or ".join(dict.fromkeys(filter(None, _words(hints[field]))))
            raise PlanError(f"pass '{name}' takes {shown} for '{field}', not {value!r}.")


def takes(hint: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; True where that cannot be told."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(takes(one, value) for one in inner)
    if origin is typing.Literal:
        return value in inner
    kind = origin or hint
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    if kind is not str and isinstance(value, str):  # a text is no list, though it is a sequence
        return kind is object
    if not isinstance(value, kind):
        return False
    if issubclass(kind, collections.abc.Mapping) and len(inner) == 2:
        return all(takes(inner[0], k) and takes(inner[1], v) for k, v in value.items())
    if kind is collections.abc.Sequence and inner:
        return all(takes(inner[0], v) for v in value)
    return True


def _words(hint: Any) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [word for one in inner for word in _words(one)]
    if origin is typing.Literal:
        return [repr(one) for one in inner]
    kind = origin or hint
    word = _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
    if kind in (collections.abc.Mapping, collections.abc.Sequence) and inner:
        word += " of " + " or ".join(_words(inner[-1])).replace("a ", "") + "s"
    return [word]
