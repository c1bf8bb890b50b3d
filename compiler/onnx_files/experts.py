"""Mixtures of experts for ONNX: transformers' grouped matrix product has no ONNX form, and its
batched one gives the same values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from ..inference.rule import op_name

BATCHED = "batched_mm"


@contextlib.contextmanager
def batched_experts(module: nn.Module) -> Iterator[None]:
    """Within the block a transformers model computes its experts by batched products; afterwards
    its configurations hold what they held."""
    switch = getattr(module, "set_experts_implementation", None)
    if not callable(switch):
        yield
        return
    found = (getattr(part, "config", None) for part in module.modules())
    configs: dict[int, Any] = {id(c): c for c in found if hasattr(c, "to_dict")}
    before = [(config, dict(vars(config))) for config in configs.values()]
    try:
        with contextlib.suppress(ValueError, RuntimeError, AttributeError):  # it has no experts
            switch(BATCHED)
        yield
    finally:
        for config, values in before:
            vars(config).clear()
            vars(config).update(values)


def groups_experts(module: nn.Module) -> bool:
    """Whether a captured graph computes experts by grouped products."""
    if not isinstance(module, fx.GraphModule):
        return False
    names = (op_name(node.target).rpartition("::")[2] for node in module.graph.nodes)
    return any("grouped_mm" in name for name in names)
