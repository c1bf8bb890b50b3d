"""Facts: the closed set of what passes may say of a compilation, and what holds where they do."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .compilation import Compilation
from .errors import PassError, PlanError


class Fact(enum.StrEnum):
    """What holds of a compilation after a pass that provides it."""

    SCORES = "scores"  # the entries of every prunable dimension have an importance
    ERRORS = "errors"  # of some dimensions it is known what is lost by width
    WIDTHS = "widths"  # how many entries of a dimension stay
    PLAN = "plan"  # which entries go
    DROPPED = "dropped"  # branches have been chosen, perhaps none
    DENSE = "dense"  # the graph is rewritten
    REPAIRED = "repaired"  # the smaller model was fitted to the original without training
    RECOVERED = "recovered"  # the smaller model was trained
    SPARSE = "sparse"  # single weights are held at zero


HELD = (Fact.SCORES, Fact.ERRORS, Fact.WIDTHS, Fact.DENSE)  # facts with an attribute of that name


def check_facts(state: Compilation, who: str) -> None:
    """Raise PassError, naming the pass, where facts and attributes of the compilation disagree."""
    for fact in HELD:
        value = getattr(state, fact)
        if fact in state.facts and value is None:
            raise PassError(f"{who} provides {fact}, but left state.{fact} unset: set it in run.")
        if fact not in state.facts and value is not None:
            raise PassError(
                f"{who} sets state.{fact} without saying so: add '{fact}' to its provides."
            )
    for wrong in (*_scores(state), *_errors(state), *_widths(state)):
        raise PassError(f"{who} left {wrong}")


def check_plan(state: Compilation) -> None:
    """Raise PlanError where kept entries are none of the dimension's, or too few."""
    for name, kept in state.plan.kept.items():
        dimension = state.graph.dimensions.get(name)
        if dimension is None:
            raise PlanError(f"the plan is of '{name}', which is no dimension of the graph.")
        valid = kept == sorted(set(kept)) and kept and 0 <= kept[0] <= kept[-1] < dimension.size
        if not valid or len(kept) < dimension.minimum:
            raise PlanError(f"the plan for '{name}' is invalid: {len(kept)} entries kept.")


def _scores(state: Compilation) -> Iterator[str]:
    dimensions = state.graph.prunable
    yield from _tensors("scores", state.scores, {n: d.size for n, d in dimensions.items()})
    for name in dimensions:
        if state.scores is not None and name not in state.scores:
            yield f"'{name}' without a score: score every dimension of state.graph.prunable."


def _errors(state: Compilation) -> Iterator[str]:
    sizes = {name: d.size + 1 for name, d in state.graph.prunable.items()}
    yield from _tensors("errors", state.errors, sizes)


def _tensors(what: str, values: Mapping[str, Tensor] | None, sizes: Mapping[str, int]) -> Any:
    for name, value in (values or {}).items():
        if name not in sizes:
            yield f"{what} of '{name}', which is no prunable dimension of the graph."
        elif not isinstance(value, Tensor) or tuple(value.shape) != (sizes[name],):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            yield f"{what} of '{name}' of shape {shape}: a tensor of {sizes[name]} is meant."
        elif not bool(torch.isfinite(value).all()):
            yield f"{what} of '{name}' that are not finite."


def _widths(state: Compilation) -> Iterator[str]:
    for name, width in (state.widths or {}).items():
        dimension = state.graph.prunable.get(name)
        if dimension is None:
            yield f"a width of '{name}', which is no prunable dimension of the graph."
        elif type(width) is not int or not 0 < width <= dimension.size:
            yield f"a width {width!r} for '{name}': a whole number up to {dimension.size} is meant."
