"""A plan that the user's class cannot carry out, made one that it can."""

from __future__ import annotations

import math

from ...compiler.compilation import Compilation
from ...compiler.emit.class_needs import Needs
from ...compiler.emit.class_trial import find_needs, try_class
from ...compiler.errors import PlanError
from ...compiler.measure.cost import cost
from ...compiler.rewrite.dead import DeadEntries
from .kept_class import LITTLE, ROUNDS, said_needs
from .planned import stay

_LIFTED = 'keep_class="never" lifts that'


def mend_plan(state: Compilation, dead: DeadEntries, mode: str) -> DeadEntries | None:
    """Change the plan of `state` so that the class holds, and say so in a note; returns the dead
    entries that go with it. None, and nothing is changed, where no such plan is found or, but under
    "always", more than `LITTLE` times the parameters would stay.

    Dead entries stay first; then, unless an allocation saw to the class, the plan gives back what
    the class cannot lose, and widths it needs equal become their mean. Raises PlanError under
    "always" where the class cannot be kept.
    """
    plan = state.plan
    kept, gone, limit = dict(plan.kept), dict(plan.dead), LITTLE * _parameters(state)
    words = ""
    plan.dead = {}
    if (kept or plan.dropped) and dead.removed and _holds(state):
        words = "entries that are dead already stay, to keep the class"
    elif kept and not state.class_held:
        needs = _give_back(state)
        words = f"to keep the class {said_needs(needs)}" if needs else ""
    if words and (mode == "always" or _parameters(state) <= limit):
        state.notes.append(f"{words}; {_LIFTED}")
        return DeadEntries(stayed=dead.stayed)
    plan.kept, plan.dead = kept, gone
    if mode == "always":
        raise PlanError(
            f"{type(state.graph.source).__name__} cannot be kept with this plan; "
            'keep_class="auto" takes the graph instead.'
        )
    return None


def _holds(state: Compilation) -> bool:
    return try_class(state.graph, state.plan.planned()).module is not None


def _give_back(state: Compilation) -> Needs | None:
    """What the plan was held to so that the class holds; None where it does not."""
    needs = Needs()
    for _ in range(ROUNDS):
        more = find_needs(state.graph, state.plan.planned())
        if more is None:
            return None
        needs = needs.joined(more)
        _hold(state, needs)
        if not state.plan.kept:
            return None
        if _holds(state):
            return needs
    return None


def _hold(state: Compilation, needs: Needs) -> None:
    plan, scores = state.plan, state.scores or {}
    for name in needs.whole:
        plan.kept.pop(name, None)
    for group in needs.ties:
        if not all(n in plan.kept and n in scores for n in group):
            for name in group:
                plan.kept.pop(name, None)
            continue
        least = max(state.graph.dimensions[n].minimum for n in group)
        width = max(least, math.ceil(sum(len(plan.kept[n]) for n in group) / len(group)))
        for name in group:
            plan.kept[name] = stay(scores[name], width).tolist()
    for name, _ in needs.multiples:
        step = needs.multiple(name)
        for own in needs.tied(name):
            if own not in plan.kept or len(plan.kept[own]) % step == 0:
                continue
            if own not in scores:
                plan.kept.pop(own)
                continue
            size = state.graph.dimensions[own].size
            width = min(size, math.ceil(len(plan.kept[own]) / step) * step)
            plan.kept[own] = stay(scores[own], width).tolist()


def _parameters(state: Compilation) -> int:
    return cost(state.graph, {v: len(own) for v, own in state.plan.combined().items()}).params
