"""The places of a JSON document, and the same document with something else in one of them.

A place is a path of keys and indices. Places of one role (the names of all nodes, say) differ in
indices and in keys that are names only.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]
_NAME = re.compile(r".*[\d.].*|.{30,}")


class Raw(str):
    """Text that stands in the document as it is: numbers that json does not write."""


def walk(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every place with its value, the document itself first."""
    yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, (*path, index))


def roles(document: Any) -> dict[Place, list[Place]]:
    """The places by their role."""
    found: dict[Place, list[Place]] = {}
    for path, _ in walk(document):
        found.setdefault(_role(document, path), []).append(path)
    return found


def _role(document: Any, path: Place) -> Place:
    role: list[str | int] = []
    value = document
    for part in path:
        if isinstance(value, list):
            mixed = len({type(item) for item in value}) > 1  # a row, not a list of alike
            role.append(part if mixed else "*")
        else:
            role.append("*" if _NAME.fullmatch(str(part)) else part)
        value = value[part]
    return tuple(role)


def at(document: Any, path: Place) -> Any:
    for part in path:
        document = document[part]
    return document


def with_value(document: Any, path: Place, value: Any) -> Any:
    """A copy with another value at the place."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def without(document: Any, path: Place) -> Any:
    changed = copy.deepcopy(document)
    del at(changed, path[:-1])[path[-1]]
    return changed


def with_key(document: Any, path: Place, key: str) -> Any:
    """A copy with the key of the place renamed, in its order."""
    changed = copy.deepcopy(document)
    owner = at(changed, path[:-1])
    items = [(key if k == path[-1] else k, v) for k, v in owner.items()]
    owner.clear()
    owner.update(items)
    return changed


def renamed(value: Any, old: str, new: str) -> Any:
    """A copy in which a string is another one wherever it stands, keys and dotted parts included:
    what somebody does who forges a name and keeps the document consistent."""
    if isinstance(value, str):
        return _renamed(value, old, new)
    if isinstance(value, list):
        return [renamed(item, old, new) for item in value]
    if isinstance(value, dict):
        return {_renamed(k, old, new): renamed(v, old, new) for k, v in value.items()}
    return value


def _renamed(text: str, old: str, new: str) -> str:
    if text == old:
        return new
    return new + text[len(old) :] if text.startswith(old + ".") else text


def text_of(document: Any) -> str:
    """The document as JSON, `Raw` values as they are."""
    raws: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(str(value))
            return f"@raw{len(raws) - 1}@"
        if isinstance(value, list):
            return [marked(item) for item in value]
        if isinstance(value, dict):
            return {k: marked(v) for k, v in value.items()}
        return value

    text = json.dumps(marked(document))
    for index, raw in enumerate(raws):
        text = text.replace(f'"@raw{index}@"', raw)
    return text
