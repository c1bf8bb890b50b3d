"""Rewrite the masked model as a smaller dense one, and prove that the two are equal."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..compiler.capture.examples import fresh_inputs, resized
from ..compiler.compilation import Compilation, Dense
from ..compiler.emit.leaf_modules import emit_graph_module, leaf_specs
from ..compiler.emit.module_backend import build_module
from ..compiler.errors import PlanError
from ..compiler.passmanager import Pass, PassResult
from ..compiler.rewrite.dead import DeadEntries, find_dead
from ..compiler.rewrite.rewrite import rewrite
from ..compiler.rewrite.slicing import Kept
from ..compiler.verify.backends import back_end_tolerance, example_calls, module_error
from ..compiler.verify.blame import blame_permutation, blame_plan
from ..compiler.verify.oracles import (
    Check,
    permutation,
    require,
    restricted_statistics,
    unsupported_statistics,
    zero_mask,
)
from ..compiler.verify.structure import check_structure

CALIBRATION_CHECKED = 2  # batches: one may be unlucky, more cost time


@dataclasses.dataclass
class SparseToDense(Pass):
    """Remove what the plan removes and what is already zero; keep the function.

    Entries without effect (zero weights, constants that fold into a consumer's bias) go too, with
    `dead=False` only the plan does. Three checks run on fresh random inputs and on calibration data
    (zero mask, restricted statistics, permutation); a failed one raises VerificationError naming
    the dimension and the node. Raises PlanError when there is nothing to remove.
    """

    dead: bool = True

    name: ClassVar[str] = "sparse-to-dense"
    provides: ClassVar[tuple[str, ...]] = ("dense",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def run(self, state: Compilation) -> PassResult:
        graph, plan = state.graph, state.plan
        planned = plan.planned()
        dead = find_dead(graph, planned) if self.dead else DeadEntries()
        names = {d.var: d.name for d in graph.prunable.values()}
        plan.dead = {names[var]: gone.tolist() for var, gone in dead.removed.items()}
        if not plan.kept and not plan.dead:
            raise PlanError(
                "SparseToDense has nothing to remove: no plan, and no entry that is already dead; "
                "put PruneChannels or PruneHeads before it."
            )
        combined = plan.combined()
        program = rewrite(graph, combined, dead.folds)
        check_structure(graph, program, combined)
        state.checks = prove(state, program, planned, dead)
        leaves = leaf_specs(graph.source, graph.program)
        graph_module = emit_graph_module(program, leaves)
        calls = example_calls(graph)
        built = build_module(
            graph, program, lambda module: module_error(graph, program, module, calls),
            back_end_tolerance(program),
        )
        plan.attributes = built.attributes
        plan.backend = "module" if built.module is not None else "graph"
        folded = set(program.tensors) - set(graph.program.tensors)
        plan.constants = {n: program.tensors[n].detach().cpu() for n in sorted(folded)}
        state.dense = Dense(program, graph_module, built.module, built.reason, leaves)
        return PassResult(True, self._summary(state), self._details(state, dead))

    def _summary(self, state: Compilation) -> str:
        assert state.dense is not None
        cut = len(set(state.plan.kept) | set(state.plan.dead))
        kind = "module" if state.dense.module is not None else "graph"
        worst = max((c.error or 0.0 for c in state.checks), default=0.0)
        return f"{cut} dimensions cut, emitted as {kind}, checks within {worst:.1e}"

    def _details(self, state: Compilation, dead: DeadEntries) -> dict[str, Any]:
        assert state.dense is not None
        return {
            "dead": {name: len(gone) for name, gone in state.plan.dead.items()},
            "folded into": [fold.node for fold in dead.folds],
            "stayed": dead.stayed,
            "back end": state.plan.backend,
            "module back end": state.dense.module_reason,
        }


def verification_inputs(state: Compilation) -> list[list[Any]]:
    """Flat inputs the checks run on: fresh ones, at another batch size when that is dynamic, and
    calibration batches."""
    program = state.graph.program
    fresh = fresh_inputs(program.args, program.kwargs, seed=1)
    inputs = [program.flat_inputs(*fresh)]
    if program.dynamic:
        inputs.append(program.flat_inputs(*resized(*fresh_inputs(*fresh, seed=2), batch=2)))
    return inputs + state.calibration[:CALIBRATION_CHECKED]


def prove(state: Compilation, program: Any, planned: Kept, dead: DeadEntries) -> list[Check]:
    """The three checks. Raises VerificationError with the culprit."""
    graph = state.graph
    if any(t.device.type == "meta" for t in graph.program.tensors.values()):
        return [Check("all", None, "-", 0, skipped="weights are on the meta device")]
    inputs = verification_inputs(state)
    checks = [
        require(permutation(graph, inputs[:1]), lambda: blame_permutation(graph, inputs[0]))
    ]
    coupled = {d.var for d in graph.prunable.values() if d.var in planned and not d.exact}
    exact = {var: kept for var, kept in planned.items() if var not in coupled}
    removed = {v: _without(planned, v, gone) for v, gone in dead.removed.items()}
    if exact or removed:
        part = program if not coupled else rewrite(
            graph, {**exact, **{v: k for v, k in removed.items() if v not in coupled}},
            dead.folds, on_use=True,
        )
        checks.append(
            require(
                zero_mask(graph, part, exact, inputs),
                lambda: blame_plan(graph, exact, inputs[0], statistics=False),
            )
        )
    if coupled:
        missing = unsupported_statistics(graph, planned)
        if missing:
            why = f"no reference for {missing[0].name} ({missing[0].target})"
            checks.append(Check("restricted statistics", None, "-", 0, skipped=why))
        else:
            checks.append(
                require(
                    restricted_statistics(graph, program, planned, inputs),
                    lambda: blame_plan(graph, planned, inputs[0], statistics=True),
                )
            )
    return checks


def _without(planned: Kept, var: Any, gone: torch.Tensor) -> torch.Tensor:
    before = planned.get(var, torch.arange(var.size))
    return before[~torch.isin(before, gone)]
