"""The nesting of a call's arguments and results as plain values, and back.

null is a leaf, {"tuple": [...]} and {"list": [...]} hold their members, {"dict": [[key, ...], ...]}
and {"ordered": ...} keys and members, {"output": [class, [[key, ...], ...]]} is one of
transformers' own output classes. Any other container becomes a dict.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import pathlib
import re
import sys
from typing import Any

import torch.utils._pytree as pytree

from ..errors import ArtifactError
from .row_values import refused

DEPTH_LIMIT = 24
_KEYED: dict[type, str] = {dict: "dict", collections.OrderedDict: "ordered"}
_PLAIN: dict[type, str] = {tuple: "tuple", list: "list"}
_TYPES = {name: kind for kind, name in (*_KEYED.items(), *_PLAIN.items())}
_OUTPUT = re.compile(
    r"transformers\.(?:(modeling_outputs)|models\.([a-z]\w*)\.(modeling_\w+))\.([A-Za-z]\w*)",
    re.ASCII,
)


def to_tree(spec: pytree.TreeSpec, foreign: list[Any] | None = None) -> Any:
    """A TreeSpec as plain values. `foreign`: takes (type, context) of a container that is none of
    the known ones; without it such a one is stored as a dict, by its keys or by position."""
    if spec.is_leaf():
        return None
    children = [to_tree(child, foreign) for child in spec.children()]
    if spec.type in _PLAIN:
        return {_PLAIN[spec.type]: children}
    keys = spec.context if isinstance(spec.context, (list, tuple)) else []
    keyed = len(keys) == len(children) and all(_is_key(key) for key in keys)
    if spec.type in _KEYED and keyed:
        return {_KEYED[spec.type]: [list(x) for x in zip(keys, children, strict=True)]}
    if foreign is not None:
        foreign.append((spec.type, spec.context))
        return {"foreign": [len(foreign) - 1, children]}
    pairs = [list(x) for x in zip(_keys(spec), children, strict=True)]
    name = f"{spec.type.__module__}.{spec.type.__qualname__}"
    if keyed and output_class(name) is spec.type:
        return {"output": [name, pairs]}
    return {"dict": pairs}


def from_tree(tree: Any, foreign: list[Any] | None = None, depth: int = 0) -> pytree.TreeSpec:
    """The TreeSpec of `to_tree`'s values. Raises ArtifactError for anything else, and where this
    transformers lacks a class of results."""
    if tree is None:
        return pytree.tree_structure(0)
    if depth > DEPTH_LIMIT or not isinstance(tree, dict) or len(tree) != 1:
        raise refused("arguments or results of no known nesting")
    ((kind, value),) = tree.items()
    if not isinstance(value, list):
        raise refused("arguments or results of no known nesting")
    if kind in ("tuple", "list"):
        children = [from_tree(child, foreign, depth + 1) for child in value]
        return pytree.TreeSpec(_TYPES[kind], None, children)
    if kind in ("dict", "ordered"):
        keys, children = _pairs(value, foreign, depth)
        return pytree.TreeSpec(_TYPES[kind], keys, children)
    if kind == "output" and len(value) == 2 and isinstance(value[0], str):
        cls = output_class(value[0])
        if cls is None:
            raise ArtifactError(
                f"the stored graph returns {value[0][:120]!r}, which is no output class of the "
                "installed transformers: install the version that wrote it."
            )
        keys, children = _pairs(value[1], foreign, depth)
        if not set(keys) <= {field.name for field in dataclasses.fields(cls)}:
            raise refused(f"keys that {cls.__name__} does not have")
        return pytree.TreeSpec(cls, keys, children)
    if kind == "foreign" and foreign is not None:
        place, children = value
        kind, context = foreign[place]
        return pytree.TreeSpec(kind, context, [from_tree(c, foreign) for c in children])
    raise refused(f"a {str(kind)[:40]!r} among its arguments or results")


def only_plain(spec: pytree.TreeSpec) -> bool:
    """Whether a tree holds tuples, lists and dicts alone, as the call of a loaded graph does."""
    if spec.is_leaf():
        return True
    known = spec.type in _PLAIN or spec.type in _KEYED
    return known and all(only_plain(child) for child in spec.children())


def as_stored(value: Any) -> Any:
    """A result as the stored graph gives it: containers of unknown classes as dicts."""
    leaves, spec = pytree.tree_flatten(value)
    return pytree.tree_unflatten(leaves, from_tree(to_tree(spec)))


def output_class(name: str) -> type | None:
    """transformers' own output class of that name: looked up in its own files, which are the only
    ones imported; None for any other name."""
    match = _OUTPUT.fullmatch(name)
    if match is None:
        return None
    try:
        from transformers.utils.generic import ModelOutput
    except ImportError:
        return None
    shared, model, file, own = match.groups()
    module = "transformers.modeling_outputs" if shared else f"transformers.models.{model}.{file}"
    if not shared and file not in _model_files(model):
        return None
    try:
        importlib.import_module(module)
    except ImportError:  # it needs a package that is not installed
        return None
    found = vars(sys.modules[module]).get(own)
    if not isinstance(found, type) or not issubclass(found, ModelOutput):
        return None
    return found if (found.__module__, found.__qualname__) == (module, own) else None


def _model_files(model: str) -> set[str]:
    import transformers

    models = pathlib.Path(str(transformers.__file__)).parent / "models"
    if model not in {place.name for place in models.iterdir()}:
        return set()
    return {path.stem for path in (models / model).glob("modeling_*.py")}


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    """Names of a container's members: its own, else their positions."""
    count = len(spec.children())
    context = spec.context
    fields = getattr(context, "_fields", None)  # of a named tuple, whose class is the context
    nested = [*context] if isinstance(context, (list, tuple)) else []  # defaultdict, dataclasses
    for keys in (context, *nested):
        if isinstance(keys, (list, tuple)) and len(keys) == count and all(map(_is_key, keys)):
            return list(keys)
    if fields is not None and len(fields) == count:
        return list(fields)
    return [str(i) for i in range(count)]


def _is_key(key: Any) -> bool:
    return type(key) in (str, int, bool, float) or key is None


def _pairs(
    value: Any, foreign: list[Any] | None, depth: int
) -> tuple[list[Any], list[pytree.TreeSpec]]:
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(x, list) and len(x) == 2 and _is_key(x[0]) for x in pairs):
        raise refused("arguments or results of no known nesting")
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys) or any(len(k) > 500 for k in keys if isinstance(k, str)):
        raise refused("one name for two arguments or results")
    return keys, [from_tree(child, foreign, depth + 1) for _, child in pairs]
