"""Kept indices -> a smaller program: tensors cut, the graph's integers rewritten from terms."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..inference.graph import Graph, SideBranch
from ..inference.rule import SELECTION, bound_arguments, op_name
from ..ir.program import Program
from ..ir.terms import Concat, Term, known_size, resolve, variables
from .slicing import Kept, cut_tensor, gather_index, kept_size, term_indices, touches

CONSTANT = "prunec_constant_"  # names a constant added behind a node that has no bias to take it


@dataclasses.dataclass(frozen=True)
class Fold:
    """A constant that removed channels contributed to a consumer: added to its bias.

    `axis`: the result axis the vector lies along; `vector`: its values, at the original width.
    """

    node: str
    axis: int
    vector: Tensor


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
    for fold in folds:
        _fold(graph, dense, fold, kept)
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
        target = self.node.target
        assert isinstance(target, torch._ops.OpOverload)
        for i, argument in enumerate(target._schema.arguments):
            if argument.name == name:
                if i < len(self.node.args):
                    self.node.update_arg(i, value)
                else:
                    self.node.update_kwarg(name, value)
                return
        raise KeyError(f"{target} has no argument {name}")

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


def _fold(graph: Graph | SideBranch, dense: Program, fold: Fold, kept: Kept) -> None:
    """Add a constant vector to the result of a consumer, through its bias where it has its own."""
    node = next(n for n in dense.graph.nodes if n.name == fold.node)
    original = next(n for n in graph.program.graph.nodes if n.name == fold.node)
    terms = graph.inference.terms[original]
    vector = fold.vector.index_select(
        0, term_indices(terms[fold.axis], kept).to(fold.vector.device)
    )
    given = bound_arguments(node)
    bias, weight = _bias(node), given.get("weight")
    writer = _NodeWriter(dense, node, kept)
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and _sole_use(dense.graph, bias):
        old = dense.tensors[str(bias.target)]
        new = (old.detach().double() + vector.double()).to(old.dtype)
        dense.tensors[str(bias.target)] = _like(old, new)
    elif bias is None and "bias" in given and weight is not None and _own_weight(dense, weight):
        name = f"{str(weight.target).rpartition('.')[0]}.bias"
        like = dense.tensors[str(weight.target)]
        dense.tensors[name] = _like(like, vector.to(like.dtype))
        with dense.graph.inserting_before(node):
            writer.set("bias", dense.graph.get_attr(name))
    else:
        _add_after(dense, node, fold, vector)


def _bias(node: fx.Node) -> Any:
    """The vector a contraction adds to every position of its result."""
    given = bound_arguments(node)
    if op_name(node.target) == "aten::addmm" and given.get("beta") == 1:
        added = given["x"]
        return added if added.meta["val"].dim() == 1 else None
    return given.get("bias")


def _own_weight(dense: Program, weight: Any) -> bool:
    """Whether the weight is a module's `weight`, used once, beside which a bias has a free name."""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    path, _, leaf = str(weight.target).rpartition(".")
    return (
        leaf == "weight" and _sole_use(dense.graph, weight) and f"{path}.bias" not in dense.tensors
    )


def _sole_use(graph: fx.Graph, tensor: fx.Node) -> bool:
    uses = [
        user
        for n in graph.nodes
        if n.op == "get_attr" and n.target == tensor.target
        for user in n.users
    ]
    return len(uses) == 1


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _add_after(dense: Program, node: fx.Node, fold: Fold, vector: Tensor) -> None:
    name = CONSTANT + node.name
    rank = node.meta["val"].dim()
    shape = [1] * rank
    shape[fold.axis] = -1
    dense.tensors[name] = nn.Parameter(
        vector.reshape(shape).to(node.meta["val"].dtype),
        requires_grad=any(isinstance(t, nn.Parameter) for t in dense.tensors.values()),
    )
    users = list(node.users)
    with dense.graph.inserting_after(node):
        constant = dense.graph.get_attr(name)
    with dense.graph.inserting_after(constant):
        total = dense.graph.call_function(torch.ops.aten.add.Tensor, (node, constant))
    total.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, total)


def folded_tensors(graph: Graph, dense: Program, folds: Sequence[Fold]) -> list[str]:
    """The names of dense tensors whose values hold a folded constant."""
    names = set(dense.tensors) - set(graph.program.tensors)
    nodes = {n.name: n for n in dense.graph.nodes}
    for fold in folds:
        bias = _bias(nodes[fold.node])
        if isinstance(bias, fx.Node):
            names.add(str(bias.target))
    return sorted(names)
