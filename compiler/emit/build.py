"""Both back ends from one dense program."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx, nn

from ..inference.graph import Graph
from ..ir.program import Program
from ..rewrite.slicing import Kept
from ..verify.backends import back_end_tolerance, example_calls, module_error, reference_outputs
from .leaf_modules import emit_graph_module, leaf_specs
from .module_backend import build_module


@dataclasses.dataclass
class Dense:
    """The rewritten model: its program, and the two back ends made from it.

    The modules share their parameters with `program.tensors`, so training one trains all.
    `module` is None where the module back end does not hold; `module_reason` says why in a line.
    """

    program: Program
    graph_module: fx.GraphModule
    module: nn.Module | None
    module_reason: str
    leaves: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The user's class where it holds, the graph otherwise."""
        return self.module if self.module is not None else self.graph_module


def emit(graph: Graph, program: Program, kept: Kept) -> tuple[Dense, dict[str, dict[str, Any]]]:
    """The dense model as a graph module and, where it agrees with that, as the user's own class.

    `kept`: what the program was rewritten with. Returns it with the attributes that the module back
    end changed. The two share parameters.
    """
    leaves = leaf_specs(graph.source, graph.program)
    graph_module = emit_graph_module(program, leaves)
    calls = example_calls(graph)
    expected = reference_outputs(program, calls)
    built = build_module(
        graph,
        program,
        kept,
        lambda module: module_error(program, module, calls, expected),
        back_end_tolerance(program),
    )
    dense = Dense(program, graph_module, built.module, built.reason, leaves)
    return dense, built.attributes
