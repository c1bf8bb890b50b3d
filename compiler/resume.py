"""A compile that was killed goes on: the plan of every round is kept, training has checkpoints."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from .compilation import Compilation
from .digest import content_digest
from .durable import write_whole
from .errors import PlanError
from .pass_class import Pass, PassResult
from .plan import Plan
from .processes import on_first
from .report import Aim, BranchReport

_FILE = "plan.json"
_IN_ROUND = "round-{}"
_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError)


def resumable(
    passes: Sequence[Pass],
    directory: pathlib.Path,
    number: int,
    model: nn.Module,
    identity: Mapping[str, Any],
) -> list[Pass]:
    """The passes of a round, by which its plan is kept in the directory; where it is there, those
    that would make it are left out. What is measured need not come out the same a second time.

    `identity`: by what, besides passes and model, this compile is told from others. Raises
    PlanError for a directory with the plan of another. A pipeline that sets single weights to zero
    keeps no plan.
    """
    first = next((i for i, step in enumerate(passes) if "dense" in step.provides), len(passes))
    planning, rest = list(passes[:first]), list(passes[first:])
    if not rest or any("sparse" in step.provides for step in planning):
        return list(passes)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {
        **identity,
        "passes": [[step.name, step.options()] for step in planning],
        "model": content_digest(tensors),
    }
    own = json.loads(json.dumps(own, default=str))
    place = directory / _FILE if number == 1 else directory / _IN_ROUND.format(number) / _FILE
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    found = on_first(lambda: known_plan(place), device)
    if found is None:
        return [*planning, _KeepPlan(place, own), *rest]
    if found["identity"] != own:
        other = [key for key in own if found["identity"].get(key) != own[key]]
        raise PlanError(
            f"{directory} holds another compile (it differs in {', '.join(other)}): give another "
            "checkpoint directory, or remove this one; calibration data that are drawn at random "
            "need a seed."
        )
    return [_KnownPlan(found), *rest]


def known_plan(place: pathlib.Path) -> dict[str, Any] | None:
    """What is kept in a file; None where there is none. Raises PlanError for a damaged one."""
    if not place.is_file():
        return None
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        found["identity"].keys()
        _parts(found)
    except (*_DAMAGED, PlanError) as error:
        raise PlanError(
            f"the checkpoint {place} cannot be read ({type(error).__name__}: {error}): remove"
            f" {place.parent}, and the compile begins anew."
        ) from error
    return found


@dataclasses.dataclass
class _Parts:
    """What a kept plan is made of."""

    plan: Plan
    scores: dict[str, torch.Tensor]
    room: tuple[Any, ...] | None
    aim: Aim | None
    branches: dict[str, BranchReport]
    notes: list[str]


def _parts(found: Mapping[str, Any]) -> _Parts:
    return _Parts(
        plan=Plan.from_json(found["plan"]),
        scores={name: torch.tensor(own) for name, own in found["scores"].items()},
        room=None if found["room"] is None else tuple(found["room"]),
        aim=None if found["aim"] is None else Aim(**found["aim"]),
        branches={b["name"]: BranchReport(**b) for b in found["branches"]},
        notes=[str(note) for note in found["notes"]],
    )


@dataclasses.dataclass
class _KeepPlan(Pass):
    """Write what was planned."""

    place: pathlib.Path
    identity: dict[str, Any]
    name: ClassVar[str] = "keep-plan"

    def run(self, state: Compilation) -> PassResult:
        scores = state.scores or {}
        data = {
            "identity": self.identity,
            "plan": state.plan.to_json(),
            "aim": None if state.aim is None else dataclasses.asdict(state.aim),
            "branches": [dataclasses.asdict(b) for b in state.branches.values()],
            "notes": state.notes,
            "room": state.room,  # for the biases of a repair
            # the order in which a mask grows
            "scores": {n: own.tolist() for n, own in scores.items()},
        }

        def write() -> None:
            write_whole(self.place, json.dumps(data, default=str))

        on_first(write, state.graph.program.device())
        return PassResult(False, f"kept in {self.place.parent.name}")

    def options(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass
class _KnownPlan(Pass):
    """Plan what was planned before."""

    found: dict[str, Any]
    name: ClassVar[str] = "known-plan"
    provides: ClassVar[tuple[str, ...]] = ("scores", "plan", "dropped")

    def run(self, state: Compilation) -> PassResult:
        parts = _parts(self.found)
        plan = parts.plan
        state.drop(plan.dropped[len(state.plan.dropped) :])
        state.plan.kept, state.scores, state.room = plan.kept, parts.scores, parts.room
        state.aim, state.branches = parts.aim, parts.branches
        state.notes += [note for note in parts.notes if note not in state.notes]
        return PassResult(False, f"{len(plan.kept)} dimensions, from the checkpoint directory")

    def options(self) -> dict[str, Any]:
        return {}
