"""What a stored graph may call: names that are looked up in closed tables, and nothing else."""

from __future__ import annotations

import contextlib
import importlib
import math
import operator
import re
from collections.abc import Callable, Container
from typing import Any

import torch

from ..errors import ArtifactError
from .row_values import refused

NAMESPACES = frozenset({"aten", "prims", "torchvision"})
# Operators that a library adds to torch's own, and its module that does so on import.
ADDED = {"transformers.grouped_mm_fallback.default": "transformers.integrations.moe"}
HIGHER_ORDER = frozenset(
    {
        "cond",
        "while_loop",
        "scan",
        "map_impl",
        "wrap_with_set_grad_enabled",
        "wrap_with_autocast",
    }
)
_OPERATOR = re.compile(r"([A-Za-z]\w{0,63})\.([A-Za-z_]\w{0,127})\.(\w{1,127})", re.ASCII)
_BITWISE = re.compile(r"__i?(and|or|xor|lshift|rshift)__")
# Files, messages, raw storage; kernels that trust their indices.
_REACH_OUTSIDE = re.compile(
    r"save|from_file|_print|warn|set_|record_stream|_unsafe_(masked_)?index\w*|_sparse_\w+_unsafe"
    r"|_test_\w+|read_file|write_file|decode_\w+|encode_\w+|_cuda_version|\w*library\w*"
)
_SCALAR_CHECKS = frozenset({"sym_constrain_range", "sym_constrain_range_for_size"})


def _functions(module: Any, prefix: str, names: str) -> dict[str, Callable[..., Any]]:
    found = {f"{prefix}.{name}": getattr(module, name, None) for name in names.split()}
    return {name: function for name, function in found.items() if function is not None}


PYTHON: dict[str, Callable[..., Any]] = {
    **_functions(
        operator,
        "operator",
        "add sub mul truediv floordiv mod pow neg pos eq ne lt le gt ge and_ or_ xor not_ lshift "
        "rshift getitem",
    ),
    **_functions(math, "math", "trunc ceil floor sqrt"),
    **_functions(
        torch, "torch", "sym_not sym_int sym_float sym_ite sym_max sym_min sym_sqrt sym_sum"
    ),
    "builtins.round": round,
}
_NAMES = {id(function): name for name, function in PYTHON.items()}


def target_name(target: Any) -> str | None:
    """The name a function goes by in a row; None for one that no stored graph may call."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        name = target.name()
        return f"higher_order.{name}" if name in HIGHER_ORDER else None
    return _NAMES.get(id(target))


def target_of(name: Any, namespaces: Container[str] = ()) -> Any:
    """The function of that name.

    Operators come from ATen, prims and torchvision, from the table of those that are added, and
    from `namespaces`, whose extension the caller has imported. Raises ArtifactError for a name that
    is in no table, for operators that reach outside of the model, and for those this torch does not
    have.
    """
    if not isinstance(name, str):
        raise refused("an operator without a name")
    if name in PYTHON:
        return PYTHON[name]
    space, _, own = name.partition(".")
    if space == "higher_order":
        found = getattr(torch.ops.higher_order, own, None) if own in HIGHER_ORDER else None
        if not isinstance(found, torch._ops.HigherOrderOperator):
            raise refused(f"the operator {name[:80]!r}")
        return found
    match = _OPERATOR.fullmatch(name)
    private = match is not None and "__" in name and not _BITWISE.fullmatch(match[2])
    if match is None or private or _REACH_OUTSIDE.fullmatch(match[2]):
        raise refused(f"the operator {name[:80]!r}")
    if name in ADDED:
        with contextlib.suppress(ImportError):  # `_operator` says that it is not there
            importlib.import_module(ADDED[name])
    elif match[1] not in NAMESPACES and match[1] not in namespaces:
        raise ArtifactError(
            f"the stored graph calls {name}: if you trust that extension, import it and name it "
            f"in namespaces=('{match[1]}',)."
        )
    return _operator(name, match[1], match[2], match[3])


def _operator(name: str, space: str, packet: str, overload: str) -> Any:
    found: Any = torch.ops
    for part in (space, packet, overload):
        found = getattr(found, part, None)
    if not isinstance(found, torch._ops.OpOverload) or found.namespace != space:
        raise ArtifactError(
            f"the stored graph calls {name}, which torch {torch.__version__} does not have: load "
            "it with the version that wrote it, or import the extension that defines it."
        )
    schema = found._schema
    types = [str(x.type) for x in (*schema.arguments, *schema.returns)]
    if space == "aten" and packet not in _SCALAR_CHECKS and not any("Tensor" in t for t in types):
        raise refused(f"the operator {name[:80]!r}")
    return found
