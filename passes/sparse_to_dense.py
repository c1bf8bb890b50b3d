"""Rewrite the masked model as a smaller dense one, and prove that the two are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..compiler.compilation import Compilation
from ..compiler.emit.build import emit
from ..compiler.emit.class_needs import check_mode
from ..compiler.emit.module_backend import ModuleResult
from ..compiler.emit.obstacles import obstacle
from ..compiler.errors import PlanError
from ..compiler.pass_class import Pass, PassResult
from ..compiler.report import BranchReport
from ..compiler.rewrite.dead import DeadEntries, find_dead
from ..compiler.rewrite.folds import folded_tensors
from ..compiler.rewrite.rewrite import rewrite
from ..compiler.rewrite.slicing import cut_tensor
from ..compiler.rewrite.zero_branches import zero_branches
from ..compiler.rounds import carry_weights
from ..compiler.verify.prove import prove, verification_inputs
from ..compiler.verify.structure import check_same, check_structure
from .allocation.given_back import mend_plan
from .reconstruction.bias import carry_biases


@dataclasses.dataclass
class SparseToDense(Pass):
    """Remove what the plan removes and what is already zero; keep the function.

    Entries without effect (zero weights, constants that fold into a consumer's bias) go too, and
    branches that add nothing but zeros; with `dead=False` only the plan does. The checks run on
    fresh random inputs and on calibration data (zero mask, restricted statistics, permutation, and
    dropped branches where there are some); a failed one raises VerificationError naming what is to
    blame and the node. In a later round the weights of the earlier one go on, cut; the proof is of
    the original's. `keep_class`: "auto" lets dead entries stay that cost the user's class, and
    where no allocation saw to it gives back what the class cannot lose, if at most a tenth more
    parameters stay by it; "always" at any cost; "never" takes the graph.
    Raises PlanError when there is nothing to remove.
    """

    dead: bool = True
    keep_class: str = "auto"

    name: ClassVar[str] = "sparse-to-dense"
    provides: ClassVar[tuple[str, ...]] = ("dense",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        check_mode(self.keep_class)

    def run(self, state: Compilation) -> PassResult:
        plan = state.plan
        known = self.dead and not state.graph.program.is_meta
        zero = self._drop_zero(state) if known else []
        graph = state.graph
        dead = find_dead(graph, plan.planned()) if known else DeadEntries()
        names = {d.var: d.name for d in graph.prunable.values()}
        plan.dead = {names[var]: gone.tolist() for var, gone in dead.removed.items()}
        if not (plan.kept or plan.dead or plan.dropped or state.masks):
            if state.aim is not None:
                raise PlanError(
                    f"the target {state.aim.asked} lets nothing go, and no entry is already dead: "
                    "allow a larger error, lower round_to and floors, or exclude less."
                )
            raise PlanError(
                "SparseToDense has nothing to remove: no plan, and no entry that is already dead; "
                "put PruneChannels, PruneHeads or DropLayers before it."
            )
        inputs, masks = verification_inputs(state), state.masks
        built = self._lower(state, dead, inputs, masks)
        assert state.dense is not None
        if state.dense.module is None and self.keep_class != "never" and not graph.program.is_meta:
            mended = mend_plan(state, dead, self.keep_class)
            if mended is not None:
                dead = mended
                built = self._lower(state, dead, inputs, masks)
        state.notes += state.dense.notes
        plan.attributes, plan.scales = built.attributes, dict(built.scales)
        plan.members = {path: list(gone) for path, gone in built.thinning.members.items()}
        plan.stubs = dict(built.thinning.stubs)
        if state.dense.module is None and not graph.program.is_meta:
            own = plan.planned() if dead.removed or dead.folds else None
            hint = obstacle(graph, plan.combined(), built.lines, own)
            state.dense.module_reason += f"; {hint}" if hint else ""
        plan.backend = "module" if state.dense.module is not None else "graph"
        folded = folded_tensors(graph, state.dense.program, dead.folds)
        plan.constants = {n: state.dense.program.tensors[n].detach().cpu().clone() for n in folded}
        carry_weights(state)
        carry_biases(state)
        details = self._details(state, dead) | {"zero branches": zero}
        return PassResult(True, self._summary(state), details)

    def _lower(
        self,
        state: Compilation,
        dead: DeadEntries,
        inputs: list[list[Any]],
        masks: Mapping[str, Tensor],
    ) -> ModuleResult:
        """Rewrite by the plan as it stands, prove and emit; `dense`, `checks` and masks follow."""
        graph, combined = state.graph, state.plan.combined()
        # Proven on tensors that are cut as they are used, and made after that: the proof's masked
        # and permuted copies and the dense model are never held at once.
        state.dense = None
        proven = rewrite(graph, combined, dead.folds, on_use=True)
        check_structure(graph, proven, combined)
        state.checks = prove(graph, proven, state.plan.planned(), dead, inputs)
        program = rewrite(graph, combined, dead.folds)
        check_same(program, proven, inputs[0])
        state.dead = dead
        state.masks = {
            name: cut_tensor(mask, graph.inference.tensors[name], combined)
            for name, mask in masks.items()
            if name in program.tensors
        }
        state.dense, built = emit(graph, program, combined)
        return built

    def _drop_zero(self, state: Compilation) -> list[str]:
        """Drop the branches that are zero already; not where that would change what is planned."""
        drops = zero_branches(state.graph, state.plan.planned())
        before = state.graph.program.tensors
        try:
            state.drop(drops)
        except PlanError:
            return []
        for drop in drops:
            held = (before[n] for n in drop.tensors)
            count = sum(t.numel() for t in held if isinstance(t, nn.Parameter))
            state.branches[drop.name] = BranchReport(
                drop.name, "branch", "dropped", "nothing: it is zero", 0.0, count
            )
        return [drop.name for drop in drops]

    def _summary(self, state: Compilation) -> str:
        assert state.dense is not None
        cut = len(set(state.plan.kept) | set(state.plan.dead))
        kind = "module" if state.dense.module is not None else "graph"
        worst = max((c.error or 0.0 for c in state.checks), default=0.0)
        gone = len(state.plan.dropped)
        branches = f", {gone} branches dropped" if gone else ""
        return f"{cut} dimensions cut{branches}, emitted as {kind}, checks within {worst:.1e}"

    def _details(self, state: Compilation, dead: DeadEntries) -> dict[str, Any]:
        assert state.dense is not None
        return {
            "dead": {name: len(gone) for name, gone in state.plan.dead.items()},
            "folded into": [fold.node for fold in dead.folds],
            "stayed": dead.stayed,
            "back end": state.plan.backend,
            "module back end": state.dense.module_reason,
        }
