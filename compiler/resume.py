"""A compile that was killed goes on: the plan of every round is kept, training has checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from .compilation import Compilation
from .errors import PlanError
from .passmanager import Pass, PassResult
from .plan import Plan
from .report import Aim, BranchReport
from .target import Target

_FILE = "plan.json"
_IN_ROUND = "round-{}"


def resumable(
    passes: Sequence[Pass], directory: pathlib.Path, number: int, target: Target, model: nn.Module
) -> list[Pass]:
    """The passes of a round, by which its plan is kept in the directory; where it is there, those
    that would make it are left out. What is measured need not come out the same a second time.

    Raises PlanError for a directory with the plan of another compile. A pipeline that sets single
    weights to zero keeps no plan.
    """
    first = next((i for i, step in enumerate(passes) if "dense" in step.provides), len(passes))
    planning, rest = list(passes[:first]), list(passes[first:])
    if not rest or any("sparse" in step.provides for step in planning):
        return list(passes)
    own = directory if number == 1 else directory / _IN_ROUND.format(number)
    identity = {
        "target": str(target),
        "passes": [[step.name, step.options()] for step in planning],
        "model": _summary(model),
    }
    place = own / _FILE
    if not place.is_file():
        return [*planning, _KeepPlan(place, identity), *rest]
    found = json.loads(place.read_text(encoding="utf-8"))
    identity = json.loads(json.dumps(identity, default=str))
    if found["identity"] != identity:
        other = [key for key in identity if found["identity"].get(key) != identity[key]]
        raise PlanError(
            f"{directory} holds another compile (it differs in {', '.join(other)}): give another "
            "checkpoint directory, or remove this one."
        )
    return [_KnownPlan(found), *rest]


@dataclasses.dataclass
class _KeepPlan(Pass):
    """Write what was planned."""

    place: pathlib.Path
    identity: dict[str, Any]
    name: ClassVar[str] = "keep-plan"

    def run(self, state: Compilation) -> PassResult:
        data = {
            "identity": self.identity,
            "plan": state.plan.to_json(),
            "aim": None if state.aim is None else dataclasses.asdict(state.aim),
            "branches": [dataclasses.asdict(b) for b in state.branches.values()],
            "notes": state.notes,
        }
        self.place.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.place.with_suffix(".part")
        scratch.write_text(json.dumps(data, default=str), encoding="utf-8")
        os.replace(scratch, self.place)
        return PassResult(False, f"kept in {self.place.parent.name}")

    def options(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass
class _KnownPlan(Pass):
    """Plan what was planned before."""

    found: dict[str, Any]
    name: ClassVar[str] = "known-plan"
    provides: ClassVar[tuple[str, ...]] = ("plan", "dropped")

    def run(self, state: Compilation) -> PassResult:
        plan = Plan.from_json(self.found["plan"])
        state.drop(plan.dropped[len(state.plan.dropped) :])
        state.plan.kept = plan.kept
        state.aim = None if self.found["aim"] is None else Aim(**self.found["aim"])
        state.branches = {b["name"]: BranchReport(**b) for b in self.found["branches"]}
        state.notes += [note for note in self.found["notes"] if note not in state.notes]
        return PassResult(False, f"{len(plan.kept)} dimensions, from the checkpoint directory")

    def options(self) -> dict[str, Any]:
        return {}


def _summary(model: nn.Module) -> list[list[Any]]:
    """By which another model, or other weights, are told: shapes, and what the entries sum to."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [[name, list(t.shape), float(t.detach().double().sum())] for name, t in tensors]
