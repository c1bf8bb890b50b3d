"""LSTM and GRU: gates x hidden rows, hidden columns, one hidden size through all layers."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, op_rule
from ..ir.terms import Term, concat, factor, product, resolve


def _recurrent(
    c: RuleContext,
    x: Any,
    hidden: list[Any],
    params: list[Any],
    gates: int,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """x [T, N, I] (or [N, T, I]); weights [gates*H, I], [gates*H, H]; states [L*D, N, H]."""
    directions = 2 if bidirectional else 1
    stride = 4 if has_biases else 2
    if len(params) != num_layers * directions * stride:
        raise ValueError("projections")
    terms = c.terms(x)
    feature: Term = terms[-1]
    states = [c.terms(h) for h in hidden]
    lead = terms[:-1]
    c.block(lead[1 if batch_first and len(lead) == 2 else 0], "a recurrence runs along it")
    for layer in range(num_layers):
        outputs: list[Term] = []
        for direction in range(directions):
            at = (layer * directions + direction) * stride
            w_ih, w_hh = params[at], params[at + 1]
            rows = factor(c.terms(w_ih)[0], gates)
            assert rows is not None
            gate, width = rows
            c.block(gate, "gates")
            c.unify(c.terms(w_ih)[1], feature)
            c.unify(c.terms(w_hh)[0], product((gate, width)))
            c.unify(c.terms(w_hh)[1], width)
            for b in params[at + 2 : at + stride]:
                c.unify(c.terms(b)[0], product((gate, width)))
            for state in states:
                c.unify(state[-1], width)
            source = [(x, len(terms) - 1)] if layer == 0 else []  # layers above read no node
            c.contract(feature, [*source, (w_ih, 1)], [*lead, gate, width], w_ih)
            c.contract(width, [(w_hh, 1)], [*lead, gate, width], w_hh)
            c.role(width, "hidden")
            outputs.append(width)
        feature = concat(outputs)
    stacked = c.fixed(num_layers * directions, "layers x directions")
    batch = lead[0] if batch_first else lead[-1]
    final = resolve(states[0][-1])
    state_terms = [stacked, batch, final] if len(lead) == 2 else [stacked, final]
    return [*lead, feature], state_terms


@op_rule("aten::lstm")
def lstm(
    c: RuleContext,
    x: Any,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    if not isinstance(hx, (list, tuple)) or not isinstance(batch_first, bool):
        raise ValueError("packed sequences")
    out, state = _recurrent(
        c, x, list(hx), list(params), 4, has_biases, num_layers, bidirectional, batch_first
    )
    return out, state, list(state)


@op_rule("aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
def gru(
    c: RuleContext,
    x: Any,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    if not isinstance(batch_first, bool):
        raise ValueError("packed sequences")
    gates = 3 if c.op == "gru" else 1
    return _recurrent(
        c, x, [hx], list(params), gates, has_biases, num_layers, bidirectional, batch_first
    )
