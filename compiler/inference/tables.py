"""Tables that several modules read (rotary cos and sin, slopes): a dimension of its own per reader.

What depends on no parameter is computed in full; each module that reads it selects its own entries.
Otherwise one table ties the widths of all layers together.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from ..ir.memory import written
from ..ir.program import Program, fake_value, is_symbolic, module_path
from ..ir.terms import (
    Concat,
    Fixed,
    Indexed,
    Product,
    Term,
    Var,
    concat,
    fresh,
    indexed,
    product,
    resolve,
    variables,
)
from .rule import Inference, RuleContext, Terms

READ = "prunec_table_read"  # marks, in a node's meta, the place where a module reads a table
Reads = dict[tuple[fx.Node, str], list[fx.Node]]


def with_reads(program: Program, inference: Inference) -> Program:
    """A copy of the program with a node wherever a module reads a table that others read too."""
    reads = _shared_reads(program, inference)
    if not reads:
        return program
    copy = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    copy.output(copy.graph_copy(program.graph, mapping))
    for (table, _), readers in reads.items():
        with copy.inserting_after(mapping[table]):
            read = copy.create_node(
                "call_function",
                torch.ops.aten.alias.default,
                (mapping[table],),
                name=f"{table.name}_read",
            )
        read.meta = {**mapping[readers[0]].meta, "val": fake_value(table), READ: True}
        for reader in readers:
            mapping[reader].replace_input_with(mapping[table], read)
    copy.lint()
    return dataclasses.replace(program, graph=copy)


@dataclasses.dataclass
class _Tables:
    """Tables that have a source in common, and the modules that read them."""

    roots: set[fx.Node]
    reads: list[tuple[fx.Node, fx.Node]]
    selectable: bool


def _shared_reads(program: Program, inference: Inference) -> Reads:
    """For each table and module that reads it, the nodes that do; tables of one module left out."""
    found: Reads = defaultdict(list)
    for tables in _tables(program, inference):
        if tables.selectable and len({module_path(reader) for _, reader in tables.reads}) > 1:
            for table, reader in tables.reads:
                found[table, module_path(reader)].append(reader)
    return found


def _tables(program: Program, inference: Inference) -> list[_Tables]:
    roots: dict[fx.Node, set[fx.Node]] = {}  # of values that depend on no parameter
    groups: list[_Tables] = []
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if isinstance(program.tensors.get(str(node.target)), nn.Parameter) or node.op == "output":
            continue
        if all(n in roots for n in inputs):
            own = {node} if _carried(inference, node) else set()
            roots[node] = set().union(*(roots[n] for n in inputs)) or own
            continue
        for n in inputs:
            if n in roots and _carried(inference, n):
                own = {r for r in roots[n] if _carried(inference, r) & _carried(inference, n)}
                met = [g for g in groups if g.roots & own]
                groups = [g for g in groups if g not in met]
                reads = [read for g in met for read in g.reads]
                usable = _selectable(inference, n, node) and all(g.selectable for g in met)
                union = own.union(*(g.roots for g in met))
                groups.append(_Tables(union, [*reads, (n, node)], usable))
    return groups


def _selectable(inference: Inference, table: fx.Node, reader: fx.Node) -> bool:
    """Whether entries can be selected by number where a node reads a table: not from a buffer as
    it is, which is cut, nor along an axis of a dynamic size."""
    sizes = fake_value(table).shape
    dynamic = [t for t, s in zip(inference.terms[table], sizes, strict=True) if is_symbolic(s)]
    return (
        table.op == "call_function"
        and table not in written(reader)
        and not any(variables(term) for term in dynamic)
    )


def _carried(inference: Inference, node: fx.Node) -> set[Var]:
    terms = inference.terms.get(node)
    if not isinstance(fake_value(node), Tensor) or not isinstance(terms, list):
        return set()
    return {v for term in terms for v in variables(term)}


def read_table(context: RuleContext, table: fx.Node) -> Terms:
    """The terms of a table as one module reads it: of the same structure, in new variables; the
    node's entries are selected after it."""
    renamed: dict[Var, Term] = {}
    terms = [_renamed(term, renamed) for term in context.terms(table)]
    context.generated(terms)
    context.inference.tables[table] = context.reason("a table that each module selects from")
    return terms


def _renamed(term: Term, renamed: dict[Var, Term]) -> Term:
    term = resolve(term)
    if isinstance(term, Fixed):
        return term
    if isinstance(term, Var):
        return renamed.setdefault(term, fresh(term.size))
    if isinstance(term, Product):
        return product([_renamed(f, renamed) for f in term.factors])
    if isinstance(term, Concat):
        return concat([_renamed(p, renamed) for p in term.parts])
    assert isinstance(term, Indexed)
    return indexed(_renamed(term.base, renamed), term.index)
