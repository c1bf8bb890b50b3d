"""The plan: kept indices per dimension and what else the rewrite did; static and serialisable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import plan_data as read
from .capture.capture import capture
from .capture.masks import without_masks
from .capture.models import plain_model
from .emit.leaf_modules import emit_graph_module, leaf_specs
from .emit.replay import replay
from .emit.thin_modules import Thinning
from .errors import PlanError
from .inference.graph import Graph
from .ir.drop import CONSTANT, Drop
from .ir.terms import Var, variables
from .option_types import checked, shown
from .rewrite.dead import find_dead
from .rewrite.depth import without_branches
from .rewrite.rewrite import rewrite
from .rewrite.slicing import Kept, term_indices

VERSION = 2
_READS = (1, 2)  # version 1 knew no dropped branches


@dataclasses.dataclass(eq=False)
class Plan:
    """What is removed.

    `kept`: for each planned dimension, the entries that stay, ascending. `dead`: for each
    dimension, entries that also go because they were already dead. `attributes`: per module path,
    the integers the module back end changed, [old, new]. `constants`: tensors by name whose values
    hold folded constants. `scales`: factors on tensors by name, once they are cut. `backend`:
    "module", "graph", or "" before the rewrite. `dropped`: branches and blocks that are left out,
    in order; for them the module back end took out `members`, by the path of their module list,
    and put `stubs` in the place of modules (see `NoBranch` for their forms). `outputs`,
    `untie_tables`: what `capture` was told when it was made.
    """

    model: str = ""
    kept: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    dead: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    constants: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    scales: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    backend: str = ""
    dropped: list[Drop] = dataclasses.field(default_factory=list)
    members: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    stubs: dict[str, str] = dataclasses.field(default_factory=dict)
    outputs: list[str | int] | None = None
    untie_tables: bool = False
    graph: Graph | None = dataclasses.field(default=None, repr=False)
    _slices: dict[str, dict[int, list[int]]] | None = dataclasses.field(default=None, repr=False)
    _shapes: dict[str, list[int]] | None = dataclasses.field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        """Whether two plans do the same, with or without their graphs."""
        return isinstance(other, Plan) and self.to_json() == other.to_json()

    @checked("entries")
    def remove(self, name: str, entries: Tensor | list[int]) -> int:
        """Plan to remove entries (indices of the original dimension); returns how many are new.

        Raises PlanError for a dimension that is unknown or blocked, for indices out of range, and
        when fewer than the dimension's minimum would stay.
        """
        dimension = self._dimension(name)
        try:
            gone = set(torch.as_tensor(entries, dtype=torch.int64).reshape(-1).tolist())
        except (TypeError, ValueError, RuntimeError) as error:
            raise PlanError(
                f"the entries to remove of '{name}' are whole numbers, not {shown(entries)}."
            ) from error
        if any(i < 0 or i >= dimension.size for i in gone):
            raise PlanError(
                f"'{name}' has {dimension.size} entries; {sorted(gone)} is out of range."
            )
        before = self.kept.get(name, list(range(dimension.size)))
        after = [i for i in before if i not in gone]
        if len(after) < dimension.minimum:
            raise PlanError(
                f"'{name}' must keep at least {dimension.minimum} of its {dimension.size} entries; "
                f"this would leave {len(after)}."
            )
        if len(after) < dimension.size:
            self.kept[name] = after
        return len(before) - len(after)

    def _dimension(self, name: str) -> Any:
        if self.graph is None:
            raise PlanError("this plan was loaded without a graph; capture the model and prune it.")
        dimension = self.graph.dimensions.get(name)
        if dimension is None:
            raise PlanError(f"there is no dimension '{name}'; `graph.explain()` lists them.")
        if dimension.blocked is not None:
            raise PlanError(f"dimension '{name}' is blocked: {dimension.blocked}.")
        return dimension

    def planned(self) -> dict[Var, Tensor]:
        """Kept indices per variable, planned removals only."""
        return {self._var(name): torch.tensor(kept) for name, kept in self.kept.items()}

    def combined(self) -> dict[Var, Tensor]:
        """Kept indices per variable, planned removals and dead entries together."""
        result = self.planned()
        for name, gone in self.dead.items():
            var = self._var(name)
            before = result.get(var, torch.arange(var.size))
            result[var] = before[~torch.isin(before, torch.tensor(gone))]
        return result

    def _var(self, name: str) -> Var:
        var = self._dimension(name).var
        assert var is not None
        return var

    def slices(self) -> dict[str, dict[int, Tensor]]:
        """For each tensor that is cut: kept indices (int64) per axis. Tied names are all listed.

        For exact dimensions, zeroing everything outside these slices in the original model gives
        the masked model the dense one is equal to; entries that were already `dead` are cut too,
        and what they add is kept as a constant.
        """
        table = self._slices if self.graph is None else tensor_slices(self.graph, self.combined())
        return {
            name: {int(axis): torch.as_tensor(kept) for axis, kept in axes.items()}
            for name, axes in (table or {}).items()
        }

    def shapes(self) -> dict[str, list[int]]:
        """The original shapes of the tensors that are cut."""
        if self.graph is None:
            return dict(self._shapes or {})
        tensors = {**self.graph.program.tensors, **self.graph.beside}
        sizes = {name: list(t.shape) for name, t in tensors.items()}
        for name, others in self.graph.aliases.items():
            sizes.update(dict.fromkeys(others, sizes.get(name, [])))
        return {name: sizes[name] for name in self.slices()}

    @property
    def thinning(self) -> Thinning:
        """What the module back end takes out of the user's class."""
        return Thinning(self.members, self.stubs)

    @checked("model", "args")
    def apply(
        self,
        model: nn.Module,
        args: Sequence[Any] | Tensor | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The smaller model made from a fresh copy of the original, which is not changed.

        Where the module back end held, type(model), from the recorded slices alone. Otherwise the
        graph: the model is captured with `args`, `kwargs` and rewritten. Trained weights are not
        part of a plan. Raises PlanError when the model does not fit.
        """
        model = without_masks(plain_model(model))
        check_fits(self, model)
        if self.backend == "module":
            return replay(
                model,
                self.slices(),
                self.attributes,
                self.constants,
                self.shapes(),
                self.scales,
                self.thinning,
            )
        if args is None and kwargs is None:
            raise PlanError(
                "this plan was carried out on the graph; give example inputs, as in "
                "plan.apply(model, (x,)), to capture the model again."
            )
        graph = capture(
            model, args, kwargs=kwargs, outputs=self.outputs, untie_tables=self.untie_tables
        )
        graph = without_branches(graph, self.dropped)
        own = dataclasses.replace(self, graph=graph)
        dead = find_dead(graph, own.planned())
        program = rewrite(graph, own.combined(), dead.folds)
        return emit_graph_module(program, leaf_specs(model, graph.program))

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan without a graph."""
        return json.dumps(
            {
                "version": VERSION,
                "model": self.model,
                "backend": self.backend,
                "outputs": self.outputs,
                "untie_tables": self.untie_tables,
                "dropped": [read.drop_data(drop) for drop in self.dropped],
                "members": self.members,
                "stubs": self.stubs,
                "kept": self.kept,
                "dead": self.dead,
                "attributes": self.attributes,
                "constants": {n: read.tensor_data(t) for n, t in self.constants.items()},
                "scales": {n: read.tensor_data(t) for n, t in self.scales.items()},
                "slices": {
                    name: {str(axis): kept.tolist() for axis, kept in axes.items()}
                    for name, axes in self.slices().items()
                },
                "shapes": self.shapes(),
            },
            indent=1,
        )

    @classmethod
    @checked()
    def from_json(cls, text: str) -> Plan:
        """Read `to_json`'s text. Raises PlanError when it is no plan, or of another version."""
        try:
            data = read.read_json(text)
            version = data["version"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PlanError(
                "this is not a plan: pass the text that Plan.to_json gave (plan.json of an "
                "artifact)."
            ) from error
        if type(version) is not int or version not in _READS:
            raise PlanError(
                f"the plan has version {str(version)[:20]}; this prunec reads version {VERSION}."
            )
        try:
            shapes = read.table(data["shapes"], read.shape, "shapes")
            backend = read.text(data["backend"])
            if backend not in ("", "module", "graph"):
                raise read.damaged("a back end")
            return cls(
                model=read.text(data["model"]),
                kept=read.table(data["kept"], read.entries, "dimensions"),
                dead=read.table(data["dead"], read.entries, "dimensions"),
                attributes=read.table(data["attributes"], read.changes, "attributes"),
                constants=read.table(data["constants"], read.tensor, "constants"),
                scales=read.table(data.get("scales", {}), read.tensor, "scales"),
                backend=backend,
                dropped=read.drops(data.get("dropped", [])),
                members=read.table(data.get("members", {}), read.indices, "members"),
                stubs=read.table(data.get("stubs", {}), read.stub, "stubs"),
                outputs=read.outputs(data["outputs"]),
                untie_tables=read.flag(data.get("untie_tables", False)),
                _slices=read.slices(data["slices"], shapes),
                _shapes=shapes,
            )
        except KeyError as error:
            raise PlanError(
                f"the plan is damaged (it has no {error}): write it by Plan.to_json."
            ) from error


def tensor_slices(graph: Graph, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Kept indices per axis of every tensor that the plan cuts, under all its names."""
    table: dict[str, dict[int, Tensor]] = {}
    for name, terms in graph.axes.items():
        axes = {
            axis: term_indices(term, kept)
            for axis, term in enumerate(terms)
            if any(v in kept for v in variables(term))
        }
        if axes and not name.startswith(CONSTANT):  # no tensor of the model
            for known in (name, *graph.aliases.get(name, ())):
                table[known] = axes
    return table


def check_fits(plan: Plan, model: nn.Module) -> None:
    """Raise PlanError unless the model has the tensors that go with dropped branches, and those
    the plan cuts, at their original shapes."""
    own: Mapping[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for drop in plan.dropped:
        absent = [name for name in drop.tensors if name not in own and name[:7] != "prunec_"]
        if absent:
            raise PlanError(
                f"the plan drops '{drop.name}' with '{absent[0]}', which {type(model).__name__} "
                "does not have."
            )
    for name, shape in plan.shapes().items():
        if name not in own:
            raise PlanError(f"the plan cuts '{name}', which {type(model).__name__} does not have.")
        if list(own[name].shape) != list(shape):
            raise PlanError(
                f"the plan expects '{name}' of shape {shape}, the model has "
                f"{list(own[name].shape)}; apply it to a model of the original shapes."
            )
