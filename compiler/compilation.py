"""The state a pipeline of passes works on: the captured graph, the plan, and what came of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .capture.copies import computed
from .emit.build import Dense
from .emit.leaf_modules import emit_graph_module, leaf_specs
from .inference.graph import Graph
from .ir.drop import Drop
from .plan import Plan
from .report import BranchReport
from .rewrite.correspondence import inherited
from .rewrite.dead import DeadEntries
from .rewrite.depth import carried, without_branches
from .rewrite.slicing import zero_tensor

if TYPE_CHECKING:
    from .report import Aim
    from .verify.check import Check


class Compilation:
    """What passes read and extend.

    `graph` is the model as captured (`graph.whole`) without the branches dropped so far; passes
    write to the tensors of neither. `plan` says what goes; `branches` what became of those that
    could be dropped. `scores` give each dimension's entries their importance (float tensor of the
    dimension's size); `errors` each dimension's relative squared error at its consumers by width
    (float64 [size + 1], entry w with w entries kept, 0 at the full width, never rising with w; None
    or without the dimension where no score knows it); `widths` how many entries of a dimension
    stay; `aim` the target these meet. `dense` is there once SparseToDense has run. `calibration` is
    what `compile` was given: unlabelled batches, flat inputs of the program. `masks`: weights of
    which single entries were set to zero (bool, True where they stay), by name in the program as it
    stands; training keeps them zero. `teacher`: the user's model, as it was handed in. `earlier`:
    the milder compilation of the same graph that this one continues; `round`: how many that makes.
    `unscored`: dimensions that a later round knows nothing of and leaves as they are.
    `class_held`: whether an allocation has seen to the class already.
    `room`: how much a target of parameters or bytes leaves for what a repair adds, (unit, amount).
    """

    def __init__(self, graph: Graph, calibration: list[list[Any]] | None = None) -> None:
        self.graph = graph
        self.teacher = graph.source
        name = type(graph.source).__qualname__
        self.plan = Plan(
            model=name, outputs=graph.outputs, untie_tables=graph.untie_tables, graph=graph
        )
        self.scores: dict[str, Tensor] | None = None
        self.errors: dict[str, Tensor] | None = None
        self.widths: dict[str, int] | None = None
        self.aim: Aim | None = None
        self.dense: Dense | None = None
        self.masks: dict[str, Tensor] = {}
        self.dead = DeadEntries()
        self.calibration = calibration or []
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.branches: dict[str, BranchReport] = {}
        self.facts: set[str] = set()  # of facts.Fact
        self.earlier: Compilation | None = None
        self.round = 1
        self.room: tuple[str, float] | None = None
        self.unscored: set[str] = set()
        self.class_held = False

    def drop(self, drops: Sequence[Drop]) -> None:
        """Drop branches of `graph`: it is another one from then on, and the plan says so; what is
        known of dimensions that remain is kept. Raises PlanError where a dimension that is planned
        already would become another one."""
        if not drops:
            return
        before = self.graph
        graph = without_branches(before.whole, [*before.drops, *drops])
        self.plan.kept = carried(self.plan.kept, before, graph)
        self.plan.dropped = list(graph.drops)
        for known in ("scores", "errors", "widths"):
            values = getattr(self, known)
            if values is not None:
                setattr(self, known, inherited(before, graph, values))
        self.graph = self.plan.graph = graph

    @property
    def samples(self) -> list[list[Any]]:
        """The calibration batches of sizes that the graph was captured for."""
        return [flat for flat in self.calibration if self.graph.program.admits(flat)]

    @property
    def model(self) -> nn.Module:
        """The model as it stands: dense, or a masked copy of the original before the rewrite."""
        return self.dense.model if self.dense is not None else masked_model(self.graph, self.plan)


def masked_model(graph: Graph, plan: Plan) -> nn.Module:
    """A copy of the user's model with every slice of a planned removal set to zero; where branches
    were dropped, a graph module of what remains."""
    kept = plan.planned()
    if graph.drops:
        masked = {
            n: _masked(t, zero_tensor(t, graph.inference.tensors[n], kept))
            for n, t in graph.program.tensors.items()
        }
        program = dataclasses.replace(graph.program, tensors=masked)
        return emit_graph_module(program, leaf_specs(graph.source, program))
    return _copy_with(
        graph,
        {
            name: zero_tensor(tensor, graph.inference.tensors[name], kept)
            for name, tensor in graph.program.tensors.items()
        },
    )


def with_weights(graph: Graph, tensors: Mapping[str, Tensor]) -> Graph:
    """The graph over a copy of the model in which some tensors, by name, have other values."""
    source = _copy_with(graph, {**graph.program.tensors, **tensors})
    named = {
        **dict(source.named_parameters(remove_duplicate=False)),
        **dict(source.named_buffers(remove_duplicate=False)),
    }

    def over(old: Graph) -> Graph:
        held = {name: named.get(name, tensor) for name, tensor in old.program.tensors.items()}
        return old.over(dataclasses.replace(old.program, tensors=held, source=source))

    other = over(graph)
    if graph.whole is not graph:
        other.whole = over(graph.whole)
    return other


def full_size(graph: Graph, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the user's model on the device, and its tensors by name in the program."""
    tensors = {
        name: _masked(tensor, tensor.detach().to(device))
        for name, tensor in graph.program.tensors.items()
    }
    return _copy_of(graph, tensors).to(device), tensors


def _copy_with(graph: Graph, tensors: Mapping[str, Tensor]) -> nn.Module:
    named = graph.program.tensors
    return _copy_of(graph, {n: _masked(t, tensors[n].detach()) for n, t in named.items()})


def _copy_of(graph: Graph, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the user's model that holds these tensors, by name in the program."""
    memo: dict[int, Any] = dict(computed(graph.source))
    memo.update({id(tensor): tensors[n] for n, tensor in graph.program.tensors.items()})
    return copy.deepcopy(graph.source, memo)


def _masked(tensor: Tensor, data: Tensor) -> Tensor:
    """The data in memory of its own, as the kind of tensor it is of."""
    data = data.clone() if data.data_ptr() == tensor.data_ptr() else data
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
