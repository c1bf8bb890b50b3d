"""Dimension inference: walk the graph once, apply each op's rule, freeze what has none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..ir.program import Program, fake_value, output_values, shape_of, source_line
from ..ir.terms import Fixed, Reason, block, fresh, variables
from .constants import integer_constants
from .numbers import fix, item, settle
from .orders import fix_orders
from .rule import (
    SELECTION,
    Inference,
    RuleContext,
    bound_arguments,
    consistent,
    find_rule,
    fixed_terms,
    op_name,
)
from .tables import READ, read_table

INDEX = Reason("an index of entries")
CHOOSING = frozenset(("aten::index", "aten::index_select", "aten::embedding"))


def infer(program: Program) -> Inference:
    """Give every axis of every value of the program a term.

    Never raises for what it does not understand: an op without a rule, a rule that fails and a
    rule whose answer does not fit the result's shape all freeze what they touch, with the reason.
    """
    constants = integer_constants(program)
    inference = _typed(program, constants)
    idle = {n for n, gather in inference.gathers.items() if not variables(gather.base)}
    if not idle:
        return inference
    # what selects from a fixed axis is free to select less
    return _typed(program, {n: t for n, t in constants.items() if not idle.issuperset(n.users)})


def _typed(program: Program, constants: dict[fx.Node, torch.Tensor]) -> Inference:
    inference = Inference(constants=constants)
    for name, tensor in program.tensors.items():
        own = name.startswith(SELECTION)
        inference.tensors[name] = [Fixed(s, INDEX) if own else fresh(s) for s in tensor.shape]
    _walk(program, inference)
    return inference


def infer_side(side: Program, inference: Inference) -> Inference:
    """Type a side branch of the program that `inference` is of, and unify what the two share. Its
    outputs block nothing; widths that only it has stay as they are."""
    shared = {v for terms in inference.tensors.values() for t in terms for v in variables(t)}
    own = Inference()
    for name, tensor in side.tensors.items():
        known = inference.tensors.get(name) or inference.beside.get(name)
        own.tensors[name] = known or [fresh(s) for s in tensor.shape]
        if known is None:
            inference.beside[name] = own.tensors[name]
    _walk(side, own, blocks=False)
    for term, size in own.minimums:
        if size > 1:
            block(term, Reason("a branch outside the captured outputs needs several of it"))
    shared = {v for var in shared for v in variables(var)}
    for terms in own.terms.values():
        for term in _flat(terms):
            for var in variables(term):
                if var not in shared:
                    var.binding = Fixed(var.size, Reason("read outside the captured outputs only"))
    return own


def _flat(terms: Any) -> list[Any]:
    groups = terms if isinstance(terms, tuple) else (terms,)
    return [term for group in groups if isinstance(group, list) for term in group]


def _walk(program: Program, inference: Inference, blocks: bool = True) -> None:
    """Apply the rules node by node; `blocks`: the outputs may not change."""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inference.terms[node] = _input_terms(node)
            inference.activations.add(node)
        elif node.op == "get_attr":
            inference.terms[node] = inference.tensors.get(str(node.target))
        elif node.op == "call_function":
            if any(n in inference.activations for n in node.all_input_nodes):
                inference.activations.add(node)
            inference.terms[node] = _call_terms(node, inference)
            if _chosen(node, inference):
                inference.chosen.add(node)
            item(node, inference)
            inference.origins[node] = _origin(node, inference)
        elif node.op == "output" and blocks:
            _fix_sizes(node, inference)
            for x in node.all_input_nodes:
                fix(inference, x, Reason("a model output numbers it", x.name, source_line(x)))
                for axis, term in enumerate(_tensor_terms(inference, x)):
                    block(term, Reason(f"model output (axis {axis})", x.name, source_line(x)))
    fix_orders(program.graph, inference)
    for table, reason in inference.tables.items():
        for term in _tensor_terms(inference, table):
            block(term, reason)


def _chosen(node: fx.Node, inference: Inference) -> bool:
    """Whether a node yields matrices chosen from a tensor by value, or the same laid out anew."""
    if node not in inference.activations or not isinstance(fake_value(node), torch.Tensor):
        return False
    if op_name(node.target) in CHOOSING:
        table, *numbers = node.all_input_nodes
        kept = len(_tensor_terms(inference, table)) - len(numbers)
        return table not in inference.activations and kept > 1
    contracts = bool(inference.sinks) and inference.sinks[-1].node is node
    values = [n for n in node.all_input_nodes if n in inference.activations]
    values = [n for n in values if isinstance(fake_value(n), torch.Tensor)]
    return not contracts and bool(values) and inference.chosen.issuperset(values)


def _fix_sizes(output: fx.Node, inference: Inference) -> None:
    """Fix what may be the source of an int that the model returns: capture knows the number only,
    and an axis of that size is where it may come from."""
    numbers = {x for x in output_values(output.args[0]) if type(x) is int and x > 1}
    for node in inference.activations if numbers else ():
        for term in _flat(inference.terms.get(node)):
            if term.size in numbers:
                reason = Reason(f"the model returns {term.size}, which may be its size", node.name)
                block(term, reason)


def _origin(node: fx.Node, inference: Inference) -> frozenset[fx.Node]:
    if inference.sinks and inference.sinks[-1].node is node and inference.sinks[-1].weight:
        return frozenset((node,))
    return frozenset().union(*(inference.origins.get(n, ()) for n in node.all_input_nodes))


def _input_terms(node: fx.Node) -> Any:
    value = fake_value(node)
    if not isinstance(value, torch.Tensor):
        return None
    return [
        Fixed(size, Reason(f"model input '{node.target}' (axis {axis})"))
        for axis, size in enumerate(shape_of(value))
    ]


def _tensor_terms(inference: Inference, node: fx.Node) -> list[Any]:
    terms = inference.terms.get(node)
    return terms if isinstance(terms, list) else []


def _call_terms(node: fx.Node, inference: Inference) -> Any:
    if node.target is operator.getitem:
        terms = inference.terms.get(node.args[0])  # type: ignore[arg-type]
        index = node.args[1]
        return terms[index] if isinstance(terms, tuple) and isinstance(index, int) else None
    if not any(_tensor_terms(inference, n) for n in node.all_input_nodes) and not isinstance(
        fake_value(node), (torch.Tensor, tuple, list)
    ):
        for x in node.all_input_nodes:
            fix(inference, x, Reason("a number is taken from it", node.name, source_line(node)))
        return None  # arithmetic on sizes
    context = RuleContext(node, inference)
    if READ in node.meta:
        return read_table(context, node.all_input_nodes[0])
    rule = find_rule(node.target)
    if rule is None:
        return _freeze(context, f"no rule for {op_name(node.target) or node.target}")
    arguments = bound_arguments(node)
    try:
        terms = rule.function(context, *(arguments.get(name) for name in rule.arguments))
    except Exception as error:  # a rule's mistake may cost compression, never correctness
        inference.failures[node] = f"{type(error).__name__}: {error}"
        return _freeze(context, f"the rule for {op_name(node.target)} failed")
    if not consistent(terms, context.value):
        inference.failures[node] = f"terms {terms} for {context.value}"
        return _freeze(context, f"the rule for {op_name(node.target)} does not fit its result")
    settle(context)
    return terms


def _freeze(context: RuleContext, text: str) -> Any:
    inference = context.inference
    for x in context.node.all_input_nodes:
        fix(inference, x, context.reason(text))
        terms = inference.terms.get(x)
        for group in terms if isinstance(terms, tuple) else (terms,):
            for term in group if isinstance(group, list) else ():
                context.block(term, text)
    inference.rewrites.pop(context.node, None)
    inference.generated.pop(context.node, None)
    inference.gathers.pop(context.node, None)
    inference.numbers.pop(context.node, None)
    inference.frozen[context.node] = context.reason(text)
    return fixed_terms(context.value, context.reason(text))
