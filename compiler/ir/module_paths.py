"""Dotted names of modules and tensors, those included that are no Python names.

torch.fx writes the path of a module into the source it generates, so a path that is no chain of
plain attributes goes under an alias there. State dicts keep the user's names.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]{1,9}")
ALIAS = "prunec_name_"


def is_plain(path: str) -> bool:
    """Whether a path may stand in source as it is: ASCII names and numbers, no keyword, no private
    name of Python, and nothing that a GraphModule has for itself."""
    first, *rest = path.split(".")
    return (
        all(_PART.fullmatch(p) and not keyword.iskeyword(p) for p in (first, *rest))
        and not any(p.startswith("__") for p in (first, *rest))
        and not hasattr(fx.GraphModule, first)
        and first not in _INSTANCE
        and not any(hasattr(nn.Module, p) or p in _INSTANCE for p in rest)
    )


_INSTANCE = frozenset(
    {"_graph", "_code", "meta", "shape_env", "_in_spec", "_out_spec", *vars(nn.Module())}
)


def at(root: nn.Module, path: str) -> Any:
    """The module or tensor registered under a path; None where there is none."""
    *outer, leaf = path.split(".")
    module: Any = root
    for part in outer:
        module = module._modules.get(part)
        if module is None:
            return None
    for table in (module._modules, module._parameters, module._buffers):
        if leaf in table:
            return table[leaf]
    return None


def add_aliases(module: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make what is registered under a path an attribute of the module's own class, by its alias."""
    for alias, path in aliases.items():
        setattr(type(module), alias, property(lambda self, path=path: at(self, path)))
