"""A bounded search over what baked sizes may be, every trial judged against the dense graph."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .baked_sizes import Decision
from .replay import holder
from .resize_modules import Changes, as_type_of, plain

MAX_TRIALS = 24
_ABSENT = object()
Choice = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial gave: the error; where it raised, the class, one line that says so, and the
    user's line as `file.py:12`."""

    error: float
    owner: str = ""
    text: str = ""
    line: str = ""


class AttributeSearch:
    """Tries choices on one module. After `run` the module has the one that agreed, if any did."""

    def __init__(
        self,
        module: nn.Module,
        decisions: Sequence[Decision],
        compare: Callable[[nn.Module], float],
        tolerance: float,
        trials: int = MAX_TRIALS,
    ) -> None:
        self.module = module
        self.decisions = decisions
        self.compare = compare
        self.tolerance = tolerance
        self.trials = trials
        self.outcomes: dict[Choice, Outcome] = {}
        self.before = {
            place: getattr(*holder(module, *place), _ABSENT)
            for d in decisions
            for choice in d.choices
            for place in choice
        }

    def run(self) -> Choice | None:
        """The first choice that agrees: what the evidence speaks for, the strong part of it, none
        of it; then changes of one or two decisions, led by where and how the last one failed."""
        starts = (
            tuple(d.trusted for d in self.decisions),
            tuple(d.strong for d in self.decisions),
            (0,) * len(self.decisions),
        )
        for choice in dict.fromkeys(starts):
            if self.agrees(choice):
                return choice
        base: Choice | None = starts[0]
        while base is not None and not self.agrees(base):
            base = self._step(base)
        return base

    def agrees(self, choice: Choice) -> bool:
        """Set the choice on the module and compare, unless that was done before."""
        if choice not in self.outcomes:
            try:
                self.set(choice)
                error = float(self.compare(self.module))
                self.outcomes[choice] = Outcome(math.inf if math.isnan(error) else error)
            except Exception as error:  # whatever a module of the wrong sizes raises
                self.outcomes[choice] = Outcome(math.inf, *_where(error))
        return self.outcomes[choice].error <= self.tolerance

    def set(self, choice: Choice) -> None:
        """Let the module have the values of a choice."""
        values = self._values(choice)
        for place, old in self.before.items():
            owner, leaf = holder(self.module, *place)
            value = as_type_of(old, values[place]) if place in values else old
            if value is not _ABSENT:
                setattr(owner, leaf, value)
            elif hasattr(owner, leaf):
                delattr(owner, leaf)

    def changes(self, choice: Choice) -> Changes:
        """What a choice changes: {module path: {attribute: [old, new]}}."""
        found: Changes = {}
        for (path, name), new in self._values(choice).items():
            old = self.before[path, name]
            if not isinstance(new, Tensor):  # a tensor is no attribute
                old = None if old is _ABSENT else plain(old)
                found.setdefault(path, {})[name] = [old, plain(new)]
        return found

    def _values(self, choice: Choice) -> dict[tuple[str, str], Any]:
        values: dict[tuple[str, str], Any] = {}
        for decision, chosen in zip(self.decisions, choice, strict=True):
            values.update(decision.choices[chosen])
        return values

    def _step(self, base: Choice) -> Choice | None:
        """A choice that agrees, or one that fails elsewhere or by less: the next base."""
        for choice in self._neighbours(base):
            if choice in self.outcomes:
                continue
            if len(self.outcomes) >= self.trials:
                return None
            if self.agrees(choice) or _progress(self.outcomes[base], self.outcomes[choice]):
                return choice
        return None

    def _neighbours(self, base: Choice) -> Iterator[Choice]:
        """One decision changed, then two; those about the class that raised come first."""
        owner = self.outcomes[base].owner
        order = sorted(range(len(base)), key=lambda i: self.decisions[i].owner != owner)
        for count in (1, 2):
            for places in itertools.combinations(order, count):
                others = [
                    [j for j in range(len(self.decisions[i].choices)) if j != base[i]]
                    for i in places
                ]
                for values in itertools.product(*others):
                    changed = list(base)
                    for i, value in zip(places, values, strict=True):
                        changed[i] = value
                    yield tuple(changed)


def _progress(old: Outcome, new: Outcome) -> bool:
    if math.isinf(old.error):
        return not math.isinf(new.error) or new.owner != old.owner
    return new.error < 0.5 * old.error


def _where(error: BaseException) -> tuple[str, str, str]:
    """The class of the user's module that raised; one line: where, and what was said; the user's
    line."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = said or type(error).__name__
    owner, place, line = "", "", ""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        own = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))  # self
        library = frame.f_globals.get("__name__", "").startswith("torch.")
        if isinstance(own, nn.Module) and not library:
            owner = type(own).__qualname__
            file = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
            line = f"{file}:{trace.tb_lineno}"
            place = f"{frame.f_code.co_qualname} at {line}: "
        trace = trace.tb_next
    return owner, f"{place}{said[:200]}", line
