"""The call of a graph that is captured again: torch.export runs it by position."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn


def positional_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call of a GraphModule with every argument that its graph has, in the graph's order:
    captured constants that the call leaves out are those of `forward`'s defaults. Any other
    module's call is given back as it is."""
    info = getattr(getattr(getattr(model, "graph", None), "_codegen", None), "pytree_info", None)
    if not isinstance(model, fx.GraphModule) or info is None:
        return args, kwargs
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:  # of a call that does not fit: export says so
        return args, kwargs
    bound.apply_defaults()
    names = info.orig_args[len(args) :]
    if not kwargs.keys() <= set(names) <= bound.arguments.keys():
        return args, kwargs
    return args, {name: bound.arguments[name] for name in names}
