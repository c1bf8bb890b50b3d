"""The captured graph with its dimensions: what `capture` returns and every pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from ..ir.program import Program
from .dependency import dependency_graph
from .dimensions import Dimension, find_dimensions
from .explain import explain_table
from .infer import infer
from .rule import Inference
from .shuffles import Shuffle, freedom, frozen_shuffles, with_selections
from .tables import with_reads

if TYPE_CHECKING:
    import networkx


class Graph:
    """A model as a graph of ATen calls whose axes carry dimension terms. Passes never change it.

    `outputs`: the outputs that matter, as they were named to `capture`; None: all. `untie_tables`:
    as `capture` takes it.
    """

    def __init__(
        self,
        program: Program,
        outputs: Sequence[str | int] | None = None,
        untie_tables: bool = False,
    ) -> None:
        self.outputs = None if outputs is None else list(outputs)
        self.untie_tables = untie_tables
        self.inference: Inference = infer(program)
        if untie_tables:
            program = with_reads(program, self.inference)
            self.inference = infer(program)
        self.dimensions: dict[str, Dimension] = find_dimensions(program, self.inference)
        self.program = program
        self._select_where_shuffles_freeze()

    def _select_where_shuffles_freeze(self) -> None:
        """Take frozen channel shuffles as selections of entries: all, else each, where that frees
        more of the weights."""
        shuffles = frozen_shuffles(self.program, self.inference)
        tried = [[s] for s in shuffles] if len(shuffles) > 1 else []
        chosen: list[Shuffle] = []
        original = self.program
        best = freedom(self.program, self.inference)
        for more in [shuffles, *tried] if shuffles else []:
            program = with_selections(original, chosen + more)
            inference = infer(program)
            dimensions = find_dimensions(program, inference)
            free = freedom(program, inference)
            if free > best:
                self.program, self.inference, self.dimensions = program, inference, dimensions
                chosen, best = chosen + more, free
            if chosen == shuffles:
                break

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

    def __repr__(self) -> str:
        nodes = len(self.program.graph.nodes)
        return (
            f"Graph({type(self.source).__name__}: {nodes} nodes, "
            f"{len(self.prunable)} prunable dimensions)"
        )

    def __reduce__(self) -> Any:
        raise TypeError("a Graph is not pickled; save a Result, or capture the model again")
