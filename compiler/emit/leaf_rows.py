"""Standard layers as plain values, and back: a class of the table, its options, and nothing that
its tensors say already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ArtifactError
from .functional_dropout import AttentionDropout
from .leaf_table import LEAF_KINDS
from .row_values import is_finite, refused

_SIZES = ("groups", "normalized_shape", "num_groups")
_LIMIT = 2**31
_KEYS = {"class", "options", "training"}


def layer_row(path: str, module: nn.Module) -> dict[str, Any]:
    """The row of a layer of an emitted graph. Raises ArtifactError for one of another class."""
    kind = LEAF_KINDS.get(type(module).__name__)
    if type(module) is AttentionDropout:
        names: tuple[str, ...] = ("p",)
    elif kind is not None and type(module) is kind.cls:
        names = (*kind.options, *_SIZES, "inplace")
    else:
        raise ArtifactError(
            f"'{path}' of the graph module is a {type(module).__name__}, which no artifact holds: "
            "save the result before layers are replaced."
        )
    own = {name: getattr(module, name) for name in names if name in vars(module)}
    options = {n: list(v) if isinstance(v, tuple) else v for n, v in own.items()}
    return {"class": type(module).__name__, "options": options, "training": module.training}


def layer_of(row: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The layer of a row, on meta. `tensors`: those stored under its path, by their own names;
    their shapes are its sizes. Raises ArtifactError where the two do not fit each other."""
    if not isinstance(row, dict) or set(row) != _KEYS or type(row["training"]) is not bool:
        raise refused("a layer of no known form")
    name, options = row["class"], row["options"]
    if not isinstance(name, str) or not isinstance(options, dict):
        raise refused("a layer of no known form")
    if name == AttentionDropout.__name__:
        _check_options(name, options, {"p"})
        return AttentionDropout(options.get("p", 0.0)).train(row["training"])
    kind = LEAF_KINDS.get(name)
    if kind is None:
        raise refused(f"the layer class {name[:40]!r}")
    _check_options(name, options, {*kind.options, *_SIZES, "inplace"})
    given: dict[str, Any] = {argument: tensors.get(argument) for argument in kind.tensors}
    given |= {key: options[key] for key in _SIZES if key in options}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    plain = {key: value for key, value in plain.items() if key in kind.options}
    if kind.tensors:
        plain["device"] = "meta"
    try:
        sizes = kind.sizes(given)
        layer = kind.cls(**plain, **(sizes or {}))
    except Exception as error:  # of torch's constructors: sizes that do not go together
        raise refused(f"a {name} whose options and tensors do not fit ({error})") from error
    for argument in kind.tensors:
        made = getattr(layer, argument, None)
        stored = given[argument]
        if (made is None) != (stored is None) or (
            stored is not None and made is not None and made.shape != stored.shape
        ):
            raise refused(f"a {name} whose '{argument}' has another shape")
    if type(options.get("inplace")) is bool and hasattr(layer, "inplace"):
        layer.inplace = options["inplace"]
    return layer.train(row["training"])


def _flag(value: Any) -> bool:
    return type(value) is bool


def _integer(value: Any) -> bool:
    return type(value) is int and abs(value) < _LIMIT


def _steps(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 3 and all(_integer(x) and x >= 0 for x in value)
    return _integer(value) and value >= 0


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(_integer(x) for x in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("stride", "dilation", "output_padding"), _steps),
    "padding": lambda x: _steps(x) or x in ("same", "valid"),
    "padding_mode": lambda x: x == "zeros",
    "eps": lambda x: x is None or is_finite(x),
    "momentum": lambda x: x is None or is_finite(x),
    "padding_idx": lambda x: x is None or _integer(x),
    "scale_grad_by_freq": _flag,
    "sparse": _flag,
    "inplace": _flag,
    "max_norm": lambda x: x is None,
    "p": lambda x: is_finite(x) and 0 <= x <= 1,
    "approximate": lambda x: x in ("none", "tanh"),
    "alpha": is_finite,
    "negative_slope": is_finite,
    "dim": lambda x: x is None or _integer(x),
    "groups": lambda x: _integer(x) and x > 0,
    "num_groups": lambda x: _integer(x) and x > 0,
    "normalized_shape": _sizes,
}


def _check_options(name: str, options: dict[str, Any], known: set[str]) -> None:
    for key, value in options.items():
        if key not in known or key not in _CHECKS or not _CHECKS[key](value):
            raise refused(f"a {name} with {str(key)[:40]}={str(value)[:40]}")
