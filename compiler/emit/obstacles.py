"""Where the user's class cannot take a plan: which dimensions stand in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..inference.dimensions import Dimension
from ..inference.graph import Graph
from ..ir.program import source_line
from ..ir.terms import Var, variables
from ..rewrite.rewrite import rewrite
from ..rewrite.slicing import Kept
from ..verify.backends import back_end_tolerance, example_calls, module_error
from .module_backend import build_module

_ATTEMPTS = 8
_TRIALS = 8  # of attributes, per attempt
_NAMED = 3


def obstacle(graph: Graph, kept: Kept, lines: Sequence[str]) -> str:
    """One sentence: the dimensions of a plan without which the module back end would hold; ''
    where no one kind of them is the cause. `kept`: the plan; `lines`: the user's lines that raised.
    """
    calls = example_calls(graph)[:1]
    for number, group in enumerate(_suspects(graph, kept, lines)):
        if number == _ATTEMPTS:
            break
        rest = {var: entries for var, entries in kept.items() if var not in group}
        if not rest:
            continue
        dense = rewrite(graph, rest)
        built = build_module(
            graph,
            dense,
            rest,
            lambda module, dense=dense: module_error(dense, module, calls),
            back_end_tolerance(dense),
            _TRIALS,
        )
        if built.module is not None:
            return _said(graph, kept, group)
    return ""


def _suspects(graph: Graph, kept: Kept, lines: Sequence[str]) -> Iterator[set[Var]]:
    """Sets of planned dimensions, the likeliest first: those whose values are made from a size,
    those on a line that raised, those of a kind."""
    by_var = {d.var: d for d in graph.prunable.values() if d.var in kept}
    tried: list[set[Var]] = [set()]
    for found in _touched(graph, lines):
        for kind in sorted({by_var[v].kind for v in found if v in by_var}):
            group = {v for v in found if v in by_var and by_var[v].kind == kind}
            if group not in tried:
                tried.append(group)
                yield group
    for kind in sorted({d.kind for d in by_var.values()}):
        group = {d.var for d in by_var.values() if d.kind == kind and d.var is not None}
        if group not in tried:
            tried.append(group)
            yield group


def _touched(graph: Graph, lines: Sequence[str]) -> Iterator[set[Var]]:
    """The variables of generated values, and of the values made on each of the lines."""
    inference = graph.inference
    yield {v for terms in inference.generated.values() for t in terms for v in variables(t)}
    for line in lines:
        found: set[Var] = set()
        for node in graph.program.graph.nodes:
            if source_line(node) == line and isinstance(terms := inference.terms.get(node), list):
                found.update(v for term in terms for v in variables(term))
        yield found


def _said(graph: Graph, kept: Kept, group: set[Var]) -> str:
    dimensions = [d for d in graph.prunable.values() if d.var in group]
    kind = dimensions[0].kind
    planned = [d for d in graph.prunable.values() if d.var in kept and d.kind == kind]
    what = f"its {kind} dimensions" if len(planned) == len(dimensions) else _listed(dimensions)
    word = repr(kind) if len(planned) == len(dimensions) else repr([d.name for d in dimensions])
    return f"without {what} in the plan it holds: exclude={word} keeps the class"


def _listed(dimensions: Sequence[Dimension]) -> str:
    names = ", ".join(f"'{d.name}'" for d in dimensions[:_NAMED])
    return names + (", ..." if len(dimensions) > _NAMED else "")
