"""Nested plain values and tensors as JSON and safetensors: what a checkpoint is made of."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from ...compiler.artifact.files import open_regular

TREE, TENSORS = "json", "safetensors"
_KINDS = ("list", "tuple", "dict", "tensor", "float")


def write_state(path: pathlib.Path, state: Any) -> None:
    """Write PATH.json and PATH.safetensors. Raises TypeError for a value that is no None, bool,
    number, text, tensor, list, tuple or dict."""
    tensors: dict[str, Tensor] = {}
    tree = _packed(state, tensors)
    _file(path, TENSORS).write_bytes(save(tensors))
    _file(path, TREE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def read_state(path: pathlib.Path) -> Any:
    """What `write_state` wrote, its tensors on the CPU. Raises ArtifactError, ValueError,
    TypeError, KeyError, RecursionError or safetensors' error for files that are missing, no regular
    ones, or damaged."""
    tensors = load(_content(_file(path, TENSORS)))
    return _unpacked(json.loads(_content(_file(path, TREE)).decode("utf-8")), tensors)


def _content(path: pathlib.Path) -> bytes:
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def _file(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(f"{path.name}.{ending}")


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Every container and tensor is {kind: content}, so that none is taken for another."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(item, tensors) for item in value]}
    if isinstance(value, dict):
        pairs = [[_packed(k, tensors), _packed(v, tensors)] for k, v in value.items()]
        return {"dict": pairs}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without its kind")
        return value
    (kind, content), *more = value.items()
    if more or kind not in _KINDS:
        raise ValueError(f"no such kind of value as {kind!r}")
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in content}
    items = [_unpacked(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
