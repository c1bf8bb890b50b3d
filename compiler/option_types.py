"""Whether arguments and options have the types that their annotations say."""

from __future__ import annotations

import abc
import collections.abc
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from .errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")
_NUMBERS = {int: numbers.Integral, float: numbers.Real}
_LONGEST = 60  # characters of a value in a message
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "",
    collections.abc.Callable: "a function (in Python, not in a recipe)",
    collections.abc.Mapping: "a table",
    collections.abc.Sequence: "a list",
    os.PathLike: "a path",
    tuple: "a tuple",
    dict: "a dict",
    list: "a list",
}
_BY_MODULE = {"torch": "torch.", "torch.nn.modules.module": "torch.nn.", "pathlib": "pathlib."}


def checked(*leaving: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator by which a function raises ArgumentError for a call that its signature or its
    annotations do not fit, before any of it runs; arguments `leaving` are checked by itself."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        names = [n for n, p in signature.parameters.items() if n != "self" and not _variadic(p)]
        who = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise ArgumentError(f"{who}: {error}; it takes {', '.join(names)}.") from error
            hints = _hints(function)
            for name in names:
                if name in given and name in hints and name not in leaving:
                    require(who, name, hints[name], given[name])
            return function(*args, **kwargs)

        return call

    return decorate


class CheckedOptions(abc.ABCMeta):
    """Of dataclasses whose fields are options: raises ArgumentError for options that a class does
    not have, lacks, or does not take, before its own checks."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(cls.__init__)
        names = [n for n, p in signature.parameters.items() if n != "self" and not _variadic(p)]
        try:
            given = signature.bind(None, *args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(f"{cls.__name__}: {error}; it has {', '.join(names)}.") from error
        check_options(cls.__name__, cls, {n: given[n] for n in names if n in given})
        return super().__call__(*args, **kwargs)


def _variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


@functools.cache
def _hints(subject: Any) -> Mapping[str, Any]:
    """The annotations; none where they cannot be read (names imported for type checkers only)."""
    try:
        return typing.get_type_hints(subject)
    except (NameError, TypeError):
        return {}


def require(who: str, name: str, hint: Any, value: Any) -> None:
    """Raise ArgumentError, naming all four, unless the value is of the annotated type."""
    if not takes(hint, value):
        if collections.abc.Iterable in _kinds(hint):
            raise ArgumentError(
                f"{name} is a {type(value).__name__}, which does not yield batches: pass a "
                "DataLoader, or a list of batches."
            )
        words = " or ".join(dict.fromkeys(filter(None, _words(hint))))
        if isinstance(value, float) and not math.isfinite(value):
            words = words.replace("a number", "a finite number")
        raise ArgumentError(f"{who} takes {words} for '{name}', not {shown(value)}.")


def shown(value: Any) -> str:
    """A value in a message: numbers and texts as they are, anything else by its type."""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        text = repr(value)
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    if isinstance(value, (list, tuple, dict, set)):
        text = repr(value)
        if len(text) <= _LONGEST and "\n" not in text:
            return text
    kind = value if isinstance(value, type) else type(value)
    what = "the class" if isinstance(value, type) else "a value of type"
    return f"{what} {kind.__qualname__}"


def check_options(name: str, cls: type, options: Mapping[str, Any]) -> None:
    """Raise ArgumentError naming the class, the field, the value and what the field takes.

    A field whose annotation cannot be read, in a pass of another package, takes everything.
    """
    hints = _hints(cls)
    for field, value in options.items():
        if field in hints:
            require(name, field, hints[field], value)


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
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if kind in _NUMBERS:
        return (
            isinstance(value, _NUMBERS[kind])
            and not isinstance(value, bool)
            and (kind is int or math.isfinite(value))
        )
    if kind is not str and isinstance(value, str):  # a text is no list, though it is a sequence
        return kind is object
    if kind is collections.abc.Iterable and isinstance(value, (collections.abc.Mapping, Tensor)):
        return False  # one batch, and not batches
    if not isinstance(value, kind):
        return False
    if issubclass(kind, collections.abc.Mapping) and len(inner) == 2:
        return all(takes(inner[0], k) and takes(inner[1], v) for k, v in value.items())
    if kind in (collections.abc.Sequence, list) and inner:
        return all(takes(inner[0], v) for v in value)
    return True


def _kinds(hint: Any) -> list[Any]:
    """The types that an annotation is a choice of, without their parameters."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _kinds(one)]
    return [origin or hint]


def _words(hint: Any) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [word for one in inner for word in _words(one)]
    if origin is typing.Literal:
        return [str(one) for one in inner]
    kind = origin or hint
    where = _BY_MODULE.get(getattr(kind, "__module__", ""), "")
    word = _WORDS.get(kind, where + getattr(kind, "__name__", str(kind)))
    named = bool(inner) and inner[-1] is not Any
    if kind in (collections.abc.Mapping, collections.abc.Sequence) and named:
        word += " of " + " or ".join(_words(inner[-1])).replace("a ", "") + "s"
    return [word]
