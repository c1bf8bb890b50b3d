"""The captured graph with its dimensions: what `capture` returns and every pass reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from ..ir.drop import Drop
from ..ir.program import Program
from .dependency import dependency_graph
from .dimensions import Dimension, find_dimensions
from .explain import explain_table
from .infer import infer, infer_side
from .rule import Inference, Terms
from .shuffles import Shuffle, freedom, frozen_shuffles, with_selections
from .tables import with_reads
from .text import program_text

if TYPE_CHECKING:
    import networkx


@dataclasses.dataclass(frozen=True)
class SideBranch:
    """A branch that the captured program does not run, typed with the dimensions they share."""

    program: Program
    inference: Inference


class Graph:
    """A model as a graph of ATen calls whose axes carry dimension terms. Passes never change it.

    `outputs`: the outputs that matter, as they were named to `capture`; None: all. `sides`:
    branches that the program does not run; of these only the widths they share with it are used.
    `beside`: the tensors that only they hold. `untie_tables`: as `capture` takes it. `whole`: the
    graph as captured, this one unless branches of it were dropped; `drops`: which.
    """

    def __init__(
        self,
        program: Program,
        outputs: Sequence[str | int] | None = None,
        sides: Sequence[Program] = (),
        untie_tables: bool = False,
        whole: Graph | None = None,
        drops: Sequence[Drop] = (),
    ) -> None:
        self.outputs = None if outputs is None else list(outputs)
        self.untie_tables = untie_tables or (whole is not None and whole.untie_tables)
        self.whole: Graph = self if whole is None else whole
        self.drops = tuple(drops)
        self._infer(program, sides)
        if untie_tables:  # what remains of a graph has its own reads already
            self._infer(with_reads(program, self.inference), sides)
        self._select_where_shuffles_freeze(sides)

    def over(self, program: Program) -> Graph:
        """The same dimensions over a program that differs in its tensors' values only."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), program=program)
        other.whole = other if self.whole is self else self.whole
        return other

    def _infer(self, program: Program, sides: Sequence[Program]) -> None:
        self.program = program
        self.inference: Inference = infer(program)
        self.sides = [SideBranch(side, infer_side(side, self.inference)) for side in sides]
        whole = program if self.whole is self else self.whole.program
        gone = whole.tensors.keys() - program.tensors.keys()  # sides may run what was dropped
        self.beside = {
            name: tensor
            for side in reversed(sides)
            for name, tensor in side.tensors.items()
            if name in self.inference.beside and name not in gone
        }
        self.aliases = {n: known for p in (*sides, program) for n, known in p.aliases.items()}
        self.dimensions: dict[str, Dimension] = find_dimensions(program, self.inference)

    def _select_where_shuffles_freeze(self, sides: Sequence[Program]) -> None:
        """Take frozen channel shuffles as selections of entries: all, else each, where that frees
        more of the weights."""
        original = self.program
        shuffles = frozen_shuffles(original, self.inference)
        tried = [[s] for s in shuffles] if len(shuffles) > 1 else []
        chosen: list[Shuffle] = []
        best = freedom(original, self.inference)
        for more in [shuffles, *tried] if shuffles else []:
            before = dict(vars(self))
            self._infer(with_selections(original, chosen + more), sides)
            free = freedom(self.program, self.inference)
            if free > best:
                chosen, best = chosen + more, free
            else:
                vars(self).update(before)
            if chosen == shuffles:
                break

    @property
    def axes(self) -> dict[str, Terms]:
        """The terms of every tensor that a plan may cut, by name."""
        beside = {n: t for n, t in self.inference.beside.items() if n in self.beside}
        return {**self.inference.tensors, **beside}

    @property
    def source(self) -> nn.Module:
        """The user's model, as it was handed in."""
        return self.program.source

    @property
    def prunable(self) -> dict[str, Dimension]:
        """The dimensions entries may be removed from, by name."""
        return {name: d for name, d in self.dimensions.items() if d.blocked is None}

    @cached_property
    def dependency(self) -> networkx.Graph:
        """The bipartite dependency graph: dimensions against tensor axes and nodes."""
        return dependency_graph(self.program, self.inference, self.dimensions)

    def explain(self, members: bool = False) -> str:
        """Every dimension: kind, size, members, exact or norm-coupled, or blocked because.

        `members`: list all tensor axes of a dimension, not the first two.
        """
        return explain_table(self.program, self.inference, self.dimensions, members)

    def text(self, kept: Mapping[str, Sequence[int]] | None = None) -> str:
        """The graph, node by node, with the terms of every axis: stable for a given model. `kept`:
        the entries of dimensions that a plan keeps."""
        names = {d.var: name for name, d in self.dimensions.items() if d.var is not None}
        known = {v: len(kept[n]) for v, n in names.items() if n in kept} if kept else {}
        terms = self.inference.tensors, self.inference.terms
        return program_text(self.program, *terms, names, known)

    def __repr__(self) -> str:
        nodes = len(self.program.graph.nodes)
        return (
            f"Graph({type(self.source).__name__}: {nodes} nodes, "
            f"{len(self.prunable)} prunable dimensions)"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a Graph is not pickled; save a Result, or capture the model again")
