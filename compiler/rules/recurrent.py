"""LSTM, GRU and their cells: gates x hidden rows, hidden columns, one hidden size in all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..inference.rule import Axis, RuleContext, Terms, op_rule
from ..ir.terms import Term, concat, factor, known_size, product, resolve


def _layer(
    c: RuleContext,
    reads: tuple[Term, Sequence[Axis]],
    carries: tuple[Term, Sequence[Axis]],
    weights: Sequence[fx.Node],
    gates: int,
    lead: Terms,
) -> Term:
    """The hidden width of w_ih [gates*H, I], w_hh [gates*H, R] and biases [gates*H].

    `reads`, `carries`: what I and R are, and the axes of values that hold them.
    """
    w_ih, w_hh, *biases = weights
    rows = factor(c.terms(w_ih)[0], gates)
    assert rows is not None
    gate, width = rows
    c.block(gate, "gates")
    for x in (w_hh, *biases):
        c.unify(c.terms(x)[0], product((gate, width)))
    for (term, places), w in ((reads, w_ih), (carries, w_hh)):
        c.unify(c.terms(w)[1], term)
        c.contract(term, [*places, (w, 1)], [*lead, gate, width], w)
    c.role(width, "hidden")
    return width


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
    """x [T, N, I] (or [N, T, I]); states h [L*D, N, R] and c [L*D, N, H]. R is H, or what a last
    matrix [R, H] of each layer (proj_size) makes of it."""
    directions = 2 if bidirectional else 1
    stride = len(params) // (num_layers * directions)
    matrices = 4 if has_biases else 2
    if len(params) != num_layers * directions * stride or stride - matrices not in (0, 1):
        raise ValueError("another layout of weights")
    terms = c.terms(x)
    feature: Term = terms[-1]
    lead = terms[:-1]
    c.block(lead[1 if batch_first and len(lead) == 2 else 0], "a recurrence runs along it")
    states = [c.terms(h)[-1] for h in hidden]
    for layer in range(num_layers):
        for direction in range(directions):
            at = (layer * directions + direction) * stride
            own = params[at : at + stride]
            source = [(x, len(terms) - 1)] if layer == 0 else []  # layers above read no node
            width = _layer(c, (feature, source), (states[0], []), own[:matrices], gates, lead)
            c.unify(states[-1], width)
            if stride > matrices:
                _project(c, own[-1], width, states[0], lead)
            else:
                c.unify(states[0], width)
        feature = concat([states[0]] * directions)
    stacked = c.fixed(num_layers * directions, "layers x directions")
    batch = [lead[0] if batch_first else lead[-1]] if len(lead) == 2 else []
    return [*lead, feature], *([stacked, *batch, resolve(state)] for state in states)


def _project(c: RuleContext, w: fx.Node, width: Term, state: Term, lead: Terms) -> None:
    """w [R, H] makes the state that is passed on. torch tells that there is one by R being another
    size than H: R stays, and H stays above it."""
    out, inner = c.terms(w)
    c.unify(inner, width)
    c.unify(out, state)
    c.block(out, "a projection is told by its size")
    c.at_least(width, known_size(out) + 1)
    c.contract(width, [(w, 1)], [*lead, out], w)


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
    return _recurrent(
        c, x, list(hx), list(params), 4, has_biases, num_layers, bidirectional, batch_first
    )


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


@op_rule("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell")
def cell(c: RuleContext, x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """x [N, I]; h, and the LSTM's c, [N, H]."""
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(c.op, 1)
    *lead, feature = c.terms(x)
    rank = len(lead)
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    reads, carries = (feature, [(x, rank)]), (c.terms(states[0])[-1], [(states[0], rank)])
    width = _layer(c, reads, carries, weights, gates, lead)
    for state in states:
        c.unify(c.terms(state)[-1], width)
        for a, b in zip(lead, c.terms(state), strict=False):
            c.unify(a, b)
    out = [*lead, resolve(width)]
    return (out, list(out)) if c.op == "lstm_cell" else out
