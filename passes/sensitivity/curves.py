"""For every dimension the order in which its entries go, and the error after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ..calibration.gram import Gram
from ..calibration.progress import shown
from .elimination import Problem, eliminate
from .problems import InputMoments, Limits, alone, input_of, problems
from .readings import Reading, find_readings

STEPS = 128  # of one dimension's elimination, at least, where it has as many entries


@dataclasses.dataclass(frozen=True)
class Curve:
    """`scores` [size]: the error once the entry has gone, so the lowest go first. `errors`
    [size + 1]: the relative squared error with so many entries kept. Both float64."""

    scores: Tensor
    errors: Tensor


@dataclasses.dataclass
class Findings:
    """`curves` by dimension; `reasons`: why a dimension has none; `few`: layers with fewer rows
    than inputs; `diagonal`: layers whose covariances were left out."""

    curves: dict[str, Curve]
    reasons: dict[str, str]
    few: list[str] = dataclasses.field(default_factory=list)
    diagonal: list[str] = dataclasses.field(default_factory=list)


def find_curves(
    graph: Graph,
    batches: Sequence[Sequence[Any]],
    limits: Limits,
    *,
    full: bool,
    ridge: float = 0.0,
    step: int | None = None,
    show: str | None = None,
) -> Findings:
    """The curve of every prunable dimension whose readers are all known.

    `full`: by elimination with covariances; otherwise by each entry's own variance. `ridge`, `step`
    (entries at a time; None: by size): of the elimination. `show`: the name on the bar.
    """
    readings, reasons = find_readings(graph)
    findings = Findings({}, reasons)
    moments = InputMoments(graph.program, batches, limits)
    waiting = {name: _by_input(own) for name, own in readings.items()}
    grams: dict[Any, Gram] = {}
    for key in shown(_in_order(graph, waiting), show or "", show is not None):
        readers = [r for own in waiting.values() for r in own.get(key, ())]
        gram = grams[key] = moments.gram(readers[0].consumer, full)
        weight = readers[0].consumer.weight
        if gram.count < gram.x.shape[1]:
            findings.few.append(weight)
        if full and not gram.full:
            findings.diagonal.append(weight)
        for name in [n for n, own in waiting.items() if key in own and own.keys() <= grams.keys()]:
            own = waiting.pop(name)
            dimension = graph.prunable[name]
            findings.curves[name] = _curve(graph, dimension, own, grams, ridge, step)
        needed = {k for own in waiting.values() for k in own}
        grams = {k: g for k, g in grams.items() if k in needed}
    return findings


def _by_input(readings: Sequence[Reading]) -> dict[Any, list[Reading]]:
    found: dict[Any, list[Reading]] = {}
    for reading in readings:
        found.setdefault(input_of(reading.consumer), []).append(reading)
    return found


def _in_order(graph: Graph, waiting: dict[str, dict[Any, list[Reading]]]) -> list[Any]:
    """Every input once, by the last of the nodes that read it."""
    place = {node: i for i, node in enumerate(graph.program.graph.nodes)}
    last = {
        key: place[own[0].consumer.nodes[-1]] for by in waiting.values() for key, own in by.items()
    }
    return sorted(last, key=last.__getitem__)


def _curve(
    graph: Graph,
    dimension: Dimension,
    readings: dict[Any, list[Reading]],
    grams: dict[Any, Gram],
    ridge: float,
    step: int | None,
) -> Curve:
    program, size = graph.program, dimension.size
    full: list[Problem] = []
    fixed = torch.zeros(size, dtype=torch.float64)
    for key, own in readings.items():
        if grams[key].full:
            full += problems(program, grams[key], own)
        else:
            fixed += alone(program, grams[key], own, size)
    order, costs = eliminate(
        full, fixed, ridge, step or -(-size // STEPS), minimum=dimension.minimum
    )
    worst = costs[-1] if costs else 0.0
    scores = torch.full((size,), float("inf"), dtype=torch.float64)
    errors = torch.full((size + 1,), max(1.0, worst), dtype=torch.float64)
    errors[size] = 0.0
    for gone, (entry, cost) in enumerate(zip(order, costs, strict=True)):
        scores[entry] = cost
        errors[size - gone - 1] = cost
    left = scores.isinf()
    scores[left] = worst + 1.0
    return Curve(scores, errors)
