"""`outputs=`: which of a model's outputs matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.utils._pytree as pytree

from ..errors import CaptureError
from ..ir.program import Program


def select_outputs(program: Program, outputs: Sequence[str | int] | str | int) -> None:
    """Let the program return the named outputs only (a tuple, or the one output by itself).

    Raises CaptureError naming the outputs there are.
    """
    chosen = [outputs] if isinstance(outputs, (str, int)) else list(outputs)
    output = next(n for n in program.graph.nodes if n.op == "output")
    values = list(output.args[0])
    tree = pytree.tree_unflatten(list(range(len(values))), program.out_spec)
    picked = [_follow(tree, key) for key in chosen]
    result = picked[0] if len(picked) == 1 else tuple(picked)
    leaves, spec = pytree.tree_flatten(result)
    output.args = (tuple(values[i] for i in leaves),)
    program.out_spec = spec
    program.selection = leaves


def _follow(tree: Any, key: str | int) -> Any:
    found = tree
    for part in str(key).split("."):
        options: list[Any] = []
        if isinstance(found, dict):
            options = list(found)
        elif isinstance(found, (tuple, list)):
            options = list(range(len(found)))
        match = next((o for o in options if str(o) == part), None)
        if match is None:
            raise CaptureError(
                f"output '{key}' does not exist; the outputs here are {options or 'a single one'}."
            )
        found = found[match]
    return found
