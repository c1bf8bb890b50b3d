"""The leaves of nested values and the way to each: by key where the class tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.utils._pytree as pytree

Path = tuple[Any, ...]


def leaves_with_path(value: Any) -> list[tuple[Path, Any]]:
    """(keys, leaf) pairs in torch's order of leaves.

    A key is a dict's key, an attribute's name or a position. Output classes that are registered
    without key paths have their children by position.
    """
    return list(_walk(value, ()))


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    children = _children(value)
    if children is None:
        yield path, value
        return
    for key, child in children:
        yield from _walk(child, (*path, key))


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """The children of a node one level down, with their keys; None for a leaf."""

    def below(x: Any) -> bool:
        return x is not value

    flat, spec = pytree.tree_flatten(value, is_leaf=below)
    if spec.is_leaf():
        return None
    try:
        pairs, _ = pytree.tree_flatten_with_path(value, is_leaf=below)
    except ValueError:  # the class was registered without key paths
        return list(enumerate(flat))
    return [(_step(path[0]), child) for path, child in pairs]


def _step(key: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)
