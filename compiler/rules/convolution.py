"""Convolutions: plain, grouped, depthwise and transposed, in one to three dimensions."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.program import fake_value, hint, shape_of
from ..ir.terms import Term, factor, product, resolve


def _block_spatial(c: RuleContext, terms: Terms) -> None:
    for term in terms:
        c.block(term, "spatial axis or kernel")


def _per_axis(given: Any, count: int, default: int) -> list[Any]:
    """A stride or padding for each spatial axis: one value, or none at all, stands for all."""
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    values = [default if v is None else v for v in values or [default]]
    return values * count if len(values) == 1 else values


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
    c: RuleContext,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    groups: Any,
    transposed: Any,
) -> Terms:
    """x [N, G*I, ...]; weight [G*O, I, ...], transposed [G*I, O, ...]; result [N, G*O, ...]."""
    flipped = bool(transposed) or "conv_transpose" in c.op
    terms, w = c.terms(x), c.terms(weight)
    spatial = len(w) - 2
    channel = len(terms) - spatial - 1  # an unbatched input has no axis before it
    dynamic = isinstance(groups, fx.Node)  # one group for each row of a batch
    groups = hint(fake_value(groups)) if dynamic else groups or 1
    places = terms[channel + 1 :]
    kernel = shape_of(weight.meta["val"])[2:]
    steps, edges = _per_axis(stride, spatial, 1), _per_axis(padding, spatial, 0)
    alone = [  # each position for itself: such an axis is no space
        not flipped and size == 1 and step == 1 and edge in (0, "valid", "same")
        for size, step, edge in zip(kernel, steps, edges, strict=True)
    ]
    _block_spatial(c, [term for term, free in zip(places, alone, strict=True) if not free])
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
    sizes = c.out_shape[channel + 1 :]
    out += [
        term if free else c.fixed(size, "spatial axis")
        for term, free, size in zip(places, alone, sizes, strict=True)
    ]
    # a transposed convolution does its work per input position
    worked = places if flipped else out[channel + 1 :]
    cost = [*terms[:channel], *worked, group, out_inner, *w[2:]]
    c.contract(inner, [(x, channel), operand], cost, weight)
    if dynamic:
        c.block(lead, "groups of a dynamic number")
    elif groups > 1:
        c.role(lead, "channel" if resolve(inner).size == 1 else "group")
        c.resize_scalar("groups", lead)
    c.role(out_inner, "channel")
    return out
