"""Allocations that the user's class can carry out, where that costs little."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...compiler.compilation import Compilation
from ...compiler.emit.attribute_search import MAX_TRIALS
from ...compiler.emit.class_needs import Needs
from ...compiler.emit.class_trial import find_needs, try_class
from ...compiler.errors import TargetError
from ...compiler.inference.graph import Graph
from ...compiler.measure.cost import cost
from ...compiler.rewrite.correspondence import inherited
from .depth import Depth
from .planned import planned
from .reached import Reached

LITTLE = 1.1  # times the free plan's predicted error; of its parameters where the target fixes none
ROUNDS = 3  # of allocations under needs, each for what the one before still lacked
NAMED = 3

Allocate = Callable[[Needs], Reached]


@dataclasses.dataclass
class KeptClass:
    """An allocation by `allocate`, which takes what has to be tied or left whole.

    The free one, where the class can carry it out; else one under what the class needs, if its
    predicted error is at most `LITTLE` times the free one's, or under "always" at any cost. What
    was done stands in the notes of `state`.
    """

    state: Compilation
    mode: str
    allocate: Allocate
    depth: Depth | None
    sized: bool  # whether the target fixes a size, so that needs cost quality
    _reason: str = ""

    def run(self) -> tuple[Reached, Needs]:
        """The allocation, and what it was held to. Raises TargetError under "always" where the
        class cannot be kept."""
        state = self.state
        free = self.allocate(Needs())
        if self.mode == "never" or state.graph.program.is_meta or self._holds(free):
            return free, Needs()
        before, room = list(state.notes), state.room
        lost, needs, found = self._reason, Needs(), free
        for _ in range(ROUNDS):
            more = self._needs(found, needs)
            if more is None or more == needs:
                break
            needs = more
            state.notes[:] = before
            try:
                found = self.allocate(needs)
            except TargetError as error:
                return self._given_up(free, before, room, f"{said_needs(needs)}: {error}")
            if not found.met and free.met:
                return self._given_up(free, before, room, f"{said_needs(needs)}: out of reach then")
            if self._holds(found):
                price = self._price(found, free)
                words = self._cost(price)
                if price > LITTLE and self.mode != "always":
                    why, remedy = f"{said_needs(needs)}, at {words}", 'keep_class="always"'
                    return self._given_up(free, before, room, why, remedy)
                state.notes.append(
                    f"to keep the class {said_needs(needs)}, at {words}; "
                    'keep_class="never" lifts that'
                )
                return found, needs
        return self._given_up(free, before, room, lost)

    def _given_up(
        self, free: Reached, notes: list[str], room: Any, why: str, remedy: str = ""
    ) -> tuple[Reached, Needs]:
        state = self.state
        name = type(state.graph.source).__name__
        if self.mode == "always":
            raise TargetError(
                f"{name} cannot be kept at this target ({why}); ask for a milder one, or set "
                'keep_class="auto" to take the graph instead.'
            )
        state.notes[:] = notes
        state.room = room
        state.notes.append(
            f"{name} is not kept: {why}" + (f"; {remedy} keeps it" if remedy else "")
        )
        return free, Needs()

    def _holds(self, reached: Reached) -> bool:
        graph, kept = planned(self.state, self.depth, reached.allocation)
        if not kept:
            return True
        built = try_class(graph, kept, trials=MAX_TRIALS)
        self._reason = built.reason
        return built.module is not None

    def _needs(self, reached: Reached, needs: Needs) -> Needs | None:
        """What this allocation lacks, beside what it has."""
        graph, kept = planned(self.state, self.depth, reached.allocation)
        found = find_needs(graph, kept)
        if found is None:
            return None
        names = _names_before(self.state, graph)
        ties = [[names[n] for n in group if n in names] for group in found.ties]
        whole = [names[n] for n in found.whole if n in names]
        multiples = {names[n]: step for n, step in found.multiples if n in names}
        return needs.with_multiples(multiples).with_ties(ties).with_whole(whole)

    def _price(self, found: Reached, free: Reached) -> float:
        """What the needs cost: predicted error over the free plan's, or parameters."""
        if not self.sized:
            return self._parameters(found) / max(self._parameters(free), 1)
        if free.loss <= 0:
            return math.inf if found.loss > 0 else 1.0
        return math.sqrt(found.loss / free.loss)

    def _cost(self, price: float) -> str:
        return f"{price:.2f}x the " + ("predicted error" if self.sized else "parameters")

    def _parameters(self, reached: Reached) -> int:
        graph, kept = planned(self.state, self.depth, reached.allocation)
        return cost(graph, {var: len(own) for var, own in kept.items()}).params


def _names_before(state: Compilation, graph: Graph) -> Mapping[str, str]:
    """For dimensions of a graph without some branches, the name of each in the state's."""
    return inherited(state.graph, graph, {name: name for name in state.graph.prunable})


def said_needs(needs: Needs) -> str:
    """In words for people."""
    parts = list(_parts(needs))
    more = len(parts) - NAMED
    return " and ".join(
        [", ".join(parts[:NAMED])] + ([f"{more} more sets of dimensions"] if more > 0 else [])
    )


def _parts(needs: Needs) -> Iterator[str]:
    for group in needs.ties:
        yield f"{' = '.join(repr(n) for n in group)} (equal widths)"
    for name, step in needs.multiples:
        yield f"{name!r} (a multiple of {step})"
    if needs.whole:
        names = sorted(needs.whole)
        more = f", {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"{', '.join(map(repr, names[:NAMED]))}{more} (left whole)"
