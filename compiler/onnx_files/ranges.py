"""The sizes that an exported graph holds for: ONNX axes have names, and no ranges."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..capture.call_spec import call_spec_of
from ..errors import ExportError
from ..ir.call_spec import CallSpec


def exported_spec(exported: Any, names: list[str]) -> CallSpec:
    """What torch knows of the tensor inputs of an ExportedProgram, in the order of `names`."""
    users = set(exported.graph_signature.user_inputs)
    values = [
        value
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in users
        if isinstance(value := node.meta.get("val"), Tensor)
    ]
    if len(values) != len(names):
        return CallSpec(())
    return call_spec_of(values, values, names, exported.range_constraints)


def require_unbounded(module: nn.Module, specs: list[CallSpec]) -> None:
    """Raise ExportError where the file would answer wrongly at sizes beyond some range: a branch of
    the model depends on them, and a file cannot say so."""
    for spec in specs:
        if spec.branches():
            raise ExportError(
                f"{type(module).__name__} was captured for {'; '.join(spec.describe())}, which an"
                " ONNX file cannot require: ask for bounded_axes='dynamic' to leave such axes free,"
                " and keep to that range."
            )


def own_spec(module: nn.Module) -> CallSpec | None:
    """What an emitted graph was captured for: its branches are no longer there to be seen."""
    codegen = getattr(getattr(module, "graph", None), "_codegen", None)
    return getattr(codegen, "call", None)
