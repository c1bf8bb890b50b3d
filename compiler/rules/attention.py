"""Fused attention."""

from __future__ import annotations

import math
from typing import Any

from ..inference.rule import NodeRewriter, RuleContext, Terms, op_rule
from ..ir.terms import product, resolve


@op_rule("aten::scaled_dot_product_attention")
def scaled_dot_product_attention(
    c: RuleContext, query: Any, key: Any, value: Any, attn_mask: Any, scale: Any, enable_gqa: Any
) -> Terms:
    """query [..., H, L, E], key [..., K, S, E], value [..., K, S, F]; result [..., H, L, F]."""
    q, k, v = c.terms(query), c.terms(key), c.terms(value)
    c.unify(q[-1], k[-1])
    c.unify(k[-2], v[-2])
    for a, b in zip(k[:-2], v[:-2], strict=True):
        c.unify(a, b)
    if enable_gqa and len(q) > 2:
        heads, shared = resolve(q[-3]).size, resolve(k[-3]).size
        assert heads is not None
        assert shared is not None
        repeat = c.var(heads // shared)
        c.role(repeat, "repeat")
        c.role(repeat, "head")
        c.unify(q[-3], product((k[-3], repeat)))
        c.role(k[-3], "head")
        for a, b in zip(q[:-3], k[:-3], strict=True):
            c.unify(a, b)
    else:
        for a, b in zip(q[:-2], k[:-2], strict=True):
            if 1 not in (resolve(a).size, resolve(b).size):
                c.unify(a, b)
    out = [*q[:-1], v[-1]]
    if c.terms(attn_mask):
        scores = [*q[:-1], k[-2]]
        for own, term in zip(reversed(c.terms(attn_mask)), reversed(scores), strict=False):
            if resolve(own).size != 1:
                c.unify(own, term)
    for term in q[:-2]:
        c.role(term, "head")
    c.role(q[-1], "head-dim")
    c.role(v[-1], "head-dim")
    c.statistic(k[-2], "softmax over it")
    rank = len(q)
    c.contract(q[-1], [(query, rank - 1), (key, len(k) - 1)], [*q[:-1], k[-2]])
    c.contract(k[-2], [(value, len(v) - 2)], out)
    if scale is None:
        size = resolve(q[-1]).size
        assert size
        # the op derives its scale from the head width: a narrower head must keep the old one
        width = q[-1]
        c.on_rewrite(lambda rw: _pin_scale(rw, width, 1.0 / math.sqrt(size)))
    return out


def _pin_scale(rw: NodeRewriter, width: Any, scale: float) -> None:
    if rw.changed(width):
        rw.set("scale", scale)
