"""Parameters, bytes and multiply-accumulates as cost models: exact, by terms."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping

from torch import nn

from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..inference.nesting import Nesting
from ..inference.rule import Terms
from ..ir.terms import Var, variables
from ..measure.cost import cost
from .parts import CostModel, Price, gather


def counted(
    graph: Graph, unit: str, chosen: Collection[Var], nesting: Nesting | None = None
) -> CostModel:
    """The cost in `params`, `bytes` or `macs`, of the whole model, as it depends on the `chosen`
    variables and on the branches of `nesting`; `measure.cost.cost` is what it agrees with. MACs are
    those of the example batch, so that no division rounds."""
    own = set(chosen)
    prices: list[tuple[frozenset[Var], str, Price]] = []
    for terms, each, branch in _products(graph, unit, nesting or Nesting()):
        touched = frozenset(v for term in terms for v in variables(term)) & own
        if touched or branch:
            prices.append((touched, branch, functools.partial(_price, terms, each)))
    parts = gather(prices)
    full = getattr(cost(graph), unit)
    if unit == "macs":
        full = sum(math.prod(width_of(t, {}) for t in terms) for _, terms in graph.inference.costs)
    return CostModel(parts, full - sum(part.cost({}) for part in parts), unit)


def _products(graph: Graph, unit: str, nesting: Nesting) -> list[tuple[Terms, int, str]]:
    """Terms whose widths multiply to a count, what each counts for, and the branch it is in."""
    if unit == "macs":
        return [(terms, 1, nesting.of_node(node.name)) for node, terms in graph.inference.costs]
    tensors = {**graph.beside, **graph.program.tensors}
    return [
        (
            terms,
            1 if unit == "params" else tensors[name].element_size(),
            nesting.of_tensors([name]),
        )
        for name, terms in graph.axes.items()
        if unit == "bytes" or isinstance(tensors[name], nn.Parameter)
    ]


def _price(terms: Terms, each: int, sizes: Mapping[Var, int]) -> float:
    known = dict(sizes)
    return each * math.prod(width_of(term, known) for term in terms)
