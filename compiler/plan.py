"""The plan: kept indices per dimension and what else the rewrite did; static and serialisable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .capture.capture import capture
from .emit.leaf_modules import emit_graph_module, leaf_specs
from .emit.replay import replay
from .emit.thin_modules import Thinning
from .errors import PlanError
from .inference.graph import Graph
from .ir.drop import CONSTANT, Drop
from .ir.terms import Var, variables
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

    def remove(self, name: str, entries: Tensor | list[int]) -> int:
        """Plan to remove entries (indices of the original dimension); returns how many are new.

        Raises PlanError for a dimension that is unknown or blocked, for indices out of range, and
        when fewer than the dimension's minimum would stay.
        """
        dimension = self._dimension(name)
        gone = set(torch.as_tensor(entries, dtype=torch.int64).reshape(-1).tolist())
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

    def apply(
        self,
        model: nn.Module,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> nn.Module:
        """The smaller model made from a fresh copy of the original, which is not changed.

        Where the module back end held, type(model), from the recorded slices alone. Otherwise the
        graph: the model is captured with `args`, `kwargs` and rewritten. Trained weights are not
        part of a plan. Raises PlanError when the model does not fit.
        """
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
                "dropped": [_drop_json(drop) for drop in self.dropped],
                "members": self.members,
                "stubs": self.stubs,
                "kept": self.kept,
                "dead": self.dead,
                "attributes": self.attributes,
                "constants": {n: _tensor_json(t) for n, t in self.constants.items()},
                "scales": {n: _tensor_json(t) for n, t in self.scales.items()},
                "slices": {
                    name: {str(axis): kept.tolist() for axis, kept in axes.items()}
                    for name, axes in self.slices().items()
                },
                "shapes": self.shapes(),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read `to_json`'s text. Raises PlanError when it is no plan, or of another version."""
        try:
            data = json.loads(text)
            version = data["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise PlanError(f"this is not a plan: {error!r}.") from error
        if version not in _READS:
            raise PlanError(f"the plan has version {version}; this prunec reads version {VERSION}.")
        try:
            return cls(
                model=data["model"],
                kept=data["kept"],
                dead=data["dead"],
                attributes=data["attributes"],
                constants={n: _tensor_from(t) for n, t in data["constants"].items()},
                scales={n: _tensor_from(t) for n, t in data.get("scales", {}).items()},
                backend=data["backend"],
                dropped=[_drop_from(drop) for drop in data.get("dropped", [])],
                members={p: list(m) for p, m in data.get("members", {}).items()},
                stubs=dict(data.get("stubs", {})),
                outputs=data["outputs"],
                untie_tables=data.get("untie_tables", False),
                _slices={
                    name: {int(axis): kept for axis, kept in axes.items()}
                    for name, axes in data["slices"].items()
                },
                _shapes=data["shapes"],
            )
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise PlanError(f"the plan is damaged: {error!r}.") from error


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


def _drop_json(drop: Drop) -> dict[str, Any]:
    constant = None if drop.constant is None else _tensor_json(drop.constant)
    return {**vars(drop), "constant": constant, "tensors": list(drop.tensors)}


def _drop_from(data: dict[str, Any]) -> Drop:
    constant = None if data["constant"] is None else _tensor_from(data["constant"])
    return Drop(**{**data, "constant": constant, "tensors": tuple(data["tensors"])})


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "values": tensor.detach().double().reshape(-1).tolist(),
    }


def _tensor_from(data: dict[str, Any]) -> Tensor:
    dtype = getattr(torch, data["dtype"])
    return torch.tensor(data["values"], dtype=torch.float64).reshape(data["shape"]).to(dtype)
