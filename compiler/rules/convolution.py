"""Convolutions: plain, grouped, depthwise and transposed, in one to three dimensions."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.terms import Term, factor, product, resolve


def _block_spatial(c: RuleContext, terms: Terms) -> None:
    for term in terms:
        c.block(term, "spatial axis or kernel")


def _split_groups(c: RuleContext, term: Term, groups: int) -> tuple[Term, Term]:
    pair = factor(term, groups)
    if pair is None:
        c.block(term, "groups cut across it")
        size = resolve(term).size
        assert size is not None
        return c.fixed(groups), c.fixed(size // groups)
    return pair


@op_rule(
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::convolution",
    "aten::_convolution",
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
)
def convolution(
    c: RuleContext, x: Any, weight: Any, bias: Any, groups: Any, transposed: Any
) -> Terms:
    """x [N, G*I, ...]; weight [G*O, I, ...], transposed [G*I, O, ...]; result [N, G*O, ...]."""
    flipped = bool(transposed) or "conv_transpose" in c.op
    terms, w = c.terms(x), c.terms(weight)
    spatial = len(w) - 2
    channel = len(terms) - spatial - 1  # an unbatched input has no axis before it
    groups = groups or 1
    _block_spatial(c, terms[channel + 1 :])
    _block_spatial(c, w[2:])
    lead, other = _split_groups(c, w[0], groups)
    group, inner = _split_groups(c, terms[channel], groups)
    c.unify(lead, group)
    if flipped:
        c.unify(other, inner)
        out_inner = w[1]
        operand = (weight, 0)
    else:
        c.unify(w[1], inner)
        out_inner = other
        operand = (weight, 1)
    out_channel = product((lead, out_inner))
    if c.terms(bias):
        c.unify(c.terms(bias)[0], out_channel)
    out = [*terms[:channel], out_channel]
    out += [c.fixed(s, "spatial axis") for s in c.out_shape[channel + 1 :]]
    # a transposed convolution does its work per input position
    places = [*terms[channel + 1 :]] if flipped else out[channel + 1 :]
    cost = [*terms[:channel], *places, group, out_inner, *w[2:]]
    c.contract(inner, [(x, channel), operand], cost, weight)
    if groups > 1:
        c.role(lead, "channel" if resolve(inner).size == 1 else "group")
        c.resize_scalar("groups", lead)
    c.role(out_inner, "channel")
    return out
