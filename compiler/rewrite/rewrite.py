"""Kept indices -> a smaller program: tensors cut, the graph's integers rewritten from terms."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..inference.graph import Graph, SideBranch
from ..inference.rule import SELECTION, bound_arguments
from ..ir.program import Program
from ..ir.terms import Concat, Term, known_size, resolve, variables
from .folds import Fold, absorb_constants, fold_constants, set_argument
from .slicing import Kept, cut_tensor, gather_index, kept_size, term_indices, touches


class CutOnUse(dict[str, Tensor]):
    """The original's tensors, each cut when it is looked up: a dense program without its memory."""

    def __init__(self, graph: Graph | SideBranch, kept: Kept) -> None:
        super().__init__(graph.program.tensors)
        self.terms, self.kept, self.own = graph.inference.tensors, kept, set[str]()

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.own.add(name)
        super().__setitem__(name, tensor)

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        if name in self.own or not touches(self.terms[name], self.kept):
            return tensor
        return cut_tensor(tensor, self.terms[name], self.kept)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def rewrite(
    graph: Graph | SideBranch, kept: Kept, folds: Sequence[Fold] = (), on_use: bool = False
) -> Program:
    """The dense program: the original restricted to the kept entries, node by node, same names.

    Its tensors are cut copies (parameters stay parameters) that share no memory with the model's;
    `on_use`: they are cut whenever they are looked up instead, for a program that is only checked.
    Nodes keep their names; an index_select or add that had to be inserted gets a new one.
    """
    program, inference = graph.program, graph.inference
    if on_use:
        tensors: dict[str, Tensor] = CutOnUse(graph, kept)
    else:
        tensors = {
            name: cut_tensor(tensor, inference.tensors[name], kept)
            for name, tensor in program.tensors.items()
        }
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = copy.graph_copy(program.graph, mapping)
    copy.output(result)
    dense = dataclasses.replace(program, graph=copy, tensors=tensors, notes=list(program.notes))
    for node, actions in inference.rewrites.items():
        writer = _NodeWriter(dense, mapping[node], kept)
        for action in actions:
            action(writer)
    fold_constants(graph, dense, folds, kept)
    if isinstance(graph, Graph):
        absorb_constants(dense, [drop.result for drop in graph.drops])
    copy.lint()
    return dense


class _NodeWriter:
    """The `NodeRewriter` that rules are given: changes one node of the copied graph."""

    def __init__(self, program: Program, node: fx.Node, kept: Kept) -> None:
        self.program = program
        self.node = node
        self.kept = kept

    def size(self, term: Term) -> int:
        """The new size of a term."""
        return kept_size(term, self.kept)

    def changed(self, term: Term) -> bool:
        """Whether a term loses entries (or has them reordered)."""
        return any(v in self.kept for v in variables(term))

    def get(self, name: str) -> Any:
        """An argument by its schema name; None when the op has no such argument."""
        return bound_arguments(self.node).get(name)

    def set(self, name: str, value: Any) -> None:
        """Replace an argument by its schema name."""
        set_argument(self.node, name, value)

    def scale(self, value: Any, term: Term) -> Any:
        """A size argument at the new width: literals are replaced, -1 is kept, and an expression
        of dynamic sizes is multiplied by new / old where it has the old width as a factor, reduced
        by old - new where it has it as a summand."""
        new, old = self.size(term), known_size(term)
        if isinstance(value, int):
            return value if value == -1 else new
        if not isinstance(value, fx.Node) or new == old:
            return value
        graph = self.program.graph
        with graph.inserting_before(self.node):
            if isinstance(resolve(term), Concat):
                return graph.call_function(operator.sub, (value, old - new))
            scaled = graph.call_function(operator.mul, (value, new))
            return graph.call_function(operator.floordiv, (scaled, old))

    def select(self, axis: int, term: Term) -> None:
        """Insert an index_select of the kept entries after the node."""
        graph = self.program.graph
        name = f"prunec_indices_{self.node.name}_{axis}"
        device = self.node.meta["val"].device
        self.program.tensors[name] = term_indices(term, self.kept).to(device)
        users = list(self.node.users)
        with graph.inserting_after(self.node):
            indices = graph.get_attr(name)
        with graph.inserting_after(indices):
            selected = graph.call_function(
                torch.ops.aten.index_select.default, (self.node, axis, indices)
            )
        for user in users:
            user.replace_input_with(self.node, selected)

    def gather(self, axis: int, base: Term, index: Sequence[int]) -> None:
        """Make the node an index_select of those of base[index] that stay."""
        graph = self.program.graph
        name = SELECTION + self.node.name
        device = self.node.meta["val"].device
        self.program.tensors[name] = gather_index(base, index, self.kept).to(device)
        with graph.inserting_before(self.node):
            indices = graph.get_attr(name)
        before = [n for n in self.node.all_input_nodes[1:] if n.op == "get_attr"]
        self.node.target = torch.ops.aten.index_select.default
        self.node.args = (self.node.args[0], axis, indices)
        self.node.kwargs = {}
        for old in before:
            if not old.users:
                graph.erase_node(old)
