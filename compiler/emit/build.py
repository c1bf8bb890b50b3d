"""Both back ends from one dense program."""

from __future__ import annotations

import dataclasses

from torch import fx, nn

from ..inference.graph import Graph
from ..ir.program import Program
from ..rewrite.slicing import Kept
from ..verify.backends import (
    back_end_tolerance,
    example_calls,
    module_error,
    reference_outputs,
    training_break,
)
from .functional_dropout import as_module, dropout_rates
from .leaf_modules import emit_graph_module, leaf_specs
from .module_backend import ModuleResult, build_module


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
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        """The user's class where it holds, the graph otherwise."""
        return self.module if self.module is not None else self.graph_module


def emit(
    graph: Graph, program: Program, kept: Kept, trainable: bool = True
) -> tuple[Dense, ModuleResult]:
    """The dense model as a graph module and, where it agrees with that, as the user's own class.

    `kept`: what the program was rewritten with. `trainable`: where the graph is all there is, bring
    functional dropout back (which captures the model once more). Returns it with what the module
    back end changed. The two share parameters.
    """
    leaves = leaf_specs(graph.source, graph.program)
    calls = example_calls(graph)
    expected = reference_outputs(program, calls)
    built = build_module(
        graph,
        program,
        kept,
        lambda module: module_error(program, module, calls, expected),
        back_end_tolerance(program),
    )
    if built.module is not None and (why := training_break(program, built.module, calls[0])):
        built = ModuleResult(None, {}, f"the module breaks in train mode: {why}", built.scales)
    rates, note = dropout_rates(graph) if built.module is None and trainable else ({}, "")
    modules = {n.name: as_module(n, rates[n.name]) for n in program.graph.nodes if n.name in rates}
    # after scales were moved into weights
    graph_module = emit_graph_module(program, leaves, modules=modules)
    notes = [f"train() of the graph module: {note}"] if note else []
    notes += built.notes
    return Dense(program, graph_module, built.module, built.reason, notes), built
