"""Rules that are broken on purpose, the nets they show on, and the checks that must see them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nets import module
from torch import Tensor, nn

from prunec.compiler.inference.rule import RuleContext, Terms
from prunec.compiler.ir.terms import concat, factor, product, resolve
from prunec.compiler.rules.attention import scaled_dot_product_attention
from prunec.compiler.rules.normalize import layer_norm
from prunec.compiler.rules.pointwise import pointwise
from prunec.compiler.rules.view import cat, slice_, split

Rule = Callable[..., Any]


def untied_pointwise(c: RuleContext) -> Terms:
    """Operands are not tied: each keeps a width of its own."""
    operands = [n for n in c.node.all_input_nodes if c.terms(n)]
    for n in operands[1:]:
        for axis, term in enumerate(c.terms(n)):
            c.contract(term, [(n, axis)], [], counted=False)
    return c.terms(operands[0])


def untied_attention(c: RuleContext, query: Any, key: Any, value: Any) -> Terms:
    """The widths of queries and keys are two dimensions."""
    q, k, v = c.terms(query), c.terms(key), c.terms(value)
    for a, b, d in zip(q[:-2], k[:-2], v[:-2], strict=True):
        c.unify(a, b)
        c.unify(a, d)
    c.contract(q[-1], [(query, 3)], [])
    c.contract(k[-1], [(key, 3)], [])
    return [*q[:-1], v[-1]]


def attention_without_a_pinned_scale(
    c: RuleContext, query: Any, key: Any, value: Any, attn_mask: Any, scale: Any, enable_gqa: Any
) -> Terms:
    return scaled_dot_product_attention(c, query, key, value, attn_mask, 1.0, enable_gqa)


def column_major_view(c: RuleContext, x: Any, size: Any) -> Terms:
    """The last axis is taken apart with the wrong factor outside."""
    terms = c.terms(x)
    *lead, outer, inner = c.out_shape
    assert outer
    assert inner
    pair = factor(terms[-1], inner)
    assert pair is not None
    out = [*(c.fixed(s) for s in lead), pair[1], pair[0]]
    c.resize("size", out)
    return out


def reversed_cat(c: RuleContext, tensors: Any, dim: Any) -> Terms:
    out = cat(c, tensors, dim)
    axis = c.axis(dim, len(out))
    return [*out[:axis], concat([c.terms(x)[axis] for x in reversed(tensors)]), *out[axis + 1 :]]


def convolution_blind_to_groups(c: RuleContext, x: Any, weight: Any, bias: Any) -> Terms:
    """Results may be reordered across groups."""
    w = c.terms(weight)
    c.unify(c.terms(bias)[0], w[0])
    c.contract(w[0], [(weight, 0)], [], weight)
    return [c.terms(x)[0], w[0], *(c.fixed(s) for s in c.out_shape[2:])]


def layer_norm_without_statistics(
    c: RuleContext, x: Any, normalized_shape: Any, weight: Any, bias: Any
) -> Terms:
    out = layer_norm(c, x, normalized_shape, weight, bias)
    c.inference.statistics.pop()
    return out


def layer_norm_without_resizing(
    c: RuleContext, x: Any, normalized_shape: Any, weight: Any, bias: Any
) -> Terms:
    out = layer_norm(c, x, normalized_shape, weight, bias)
    c.inference.rewrites.pop(c.node)
    return out


def group_norm_without_resizing(
    c: RuleContext, x: Any, num_groups: int, weight: Any, bias: Any
) -> Terms:
    """Fewer groups, and the number of groups stays."""
    terms = c.terms(x)
    for parameter in (weight, bias):
        c.unify(c.terms(parameter)[0], terms[1])
    pair = factor(terms[1], num_groups)
    assert pair is not None
    c.block(pair[1], "a test")
    return terms


def untied_layer_norm(c: RuleContext, x: Any, normalized_shape: Any, weight: Any) -> Terms:
    """gamma and beta are dimensions of their own."""
    for n in (x, weight):
        c.statistic(c.terms(n)[-1], "layer_norm takes statistics over it")
    c.resize("normalized_shape", c.terms(x)[-1:])
    return c.terms(x)


def softmax_without_statistics(c: RuleContext, x: Any) -> Terms:
    return c.terms(x)


def slice_that_stays(c: RuleContext, x: Any, start: int) -> Terms:
    """The bounds are not moved."""
    out = slice_(c, x, 2, start, sys.maxsize, 1, None)
    c.inference.rewrites.pop(c.node, None)
    return out


def tied_only_without_weights(c: RuleContext, x: Any, other: Any) -> Terms:
    """A product of two activations does not tie them."""
    if c.is_activation(x) and c.is_activation(other):
        return untied_pointwise(c)
    return pointwise(c)


def interleaved_chunks(c: RuleContext, x: Any, chunks: int) -> Any:
    """Halves are taken for even and odd entries."""
    terms = c.terms(x)
    pair = factor(terms[-1], resolve(terms[-1]).size // chunks)  # type: ignore[operator]
    assert pair is not None
    c.block(pair[1], "a test")
    pieces = [[*terms[:-1], pair[0]] for _ in range(chunks)]
    return tuple(pieces)


def reversed_split(c: RuleContext, x: Any, split_size: Any) -> Any:
    """The second piece is taken for the first: the two are of one size."""
    return tuple(split(c, x, 2)[::-1])


def taken_for_pointwise(c: RuleContext) -> Any:
    """An op whose result depends on the order of entries passes them on."""
    return pointwise(c)


def tiles_inside(c: RuleContext, x: Any, repeats: list[int]) -> Terms:
    """repeat() taken for repeat_interleave()."""
    terms = c.terms(x)
    return [*terms[:-1], product((terms[-1], c.fixed(repeats[-1])))]


# the nets they are broken on


def gated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    return module(forward, gate=nn.Linear(8, 10), up=nn.Linear(8, 10), down=nn.Linear(10, 5))


def attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, 4, 6).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(out.transpose(1, 2).reshape(b, n, 24))

    return module(
        forward,
        q=nn.Linear(8, 24),
        k=nn.Linear(8, 24),
        v=nn.Linear(8, 24),
        head=nn.Linear(24, 5),
    )


def pooled_heads() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.up(x).view(-1, 7, 4, 6).relu().sum(-1))

    return module(forward, up=nn.Linear(8, 24), head=nn.Linear(4, 5))


def joined() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x).relu()], -1))

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(8, 9), head=nn.Linear(18, 5))


def grouped() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    return module(forward, body=nn.Conv1d(7, 12, 3), head=nn.Conv1d(12, 6, 1, groups=3))


def normed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(forward, stem=nn.Linear(8, 12), norm=nn.LayerNorm(12), head=nn.Linear(12, 5))


def group_normed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(
        forward, stem=nn.Conv1d(7, 16, 1), norm=nn.GroupNorm(4, 16), head=nn.Conv1d(16, 5, 1)
    )


def shares() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).softmax(-1))

    return module(forward, stem=nn.Linear(8, 12), head=nn.Linear(12, 5))


def halves() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1)
        return self.head(a * b.sigmoid())

    return module(forward, both=nn.Linear(8, 20), head=nn.Linear(10, 5))


def uneven() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.both(x).split([10, 10], -1)
        return self.a(a) + self.b(b.relu())

    return module(forward, both=nn.Linear(8, 20), a=nn.Linear(10, 5), b=nn.Linear(10, 5))


def running() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).cumsum(-1).relu())

    return module(forward, stem=nn.Linear(8, 12), head=nn.Linear(12, 5))


def rolled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).roll(1, -1) * self.stem(x))

    return module(forward, stem=nn.Linear(8, 12), head=nn.Linear(12, 5))


def tail() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.both(x)
        return self.head(wide[:, :, 12:]) + self.other(wide)

    return module(forward, both=nn.Linear(8, 20), head=nn.Linear(8, 5), other=nn.Linear(20, 5))


def tiled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).repeat(1, 1, 3))

    return module(forward, stem=nn.Linear(8, 6), head=nn.Linear(18, 5))


def normed_queries() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k = (self.norm(part(x)).unsqueeze(1) for part in (self.q, self.k))
        return self.head(F.scaled_dot_product_attention(q, k, self.v(x).unsqueeze(1)).squeeze(1))

    return module(
        forward,
        q=nn.Linear(8, 12),
        k=nn.Linear(8, 12),
        v=nn.Linear(8, 6),
        norm=nn.LayerNorm(12),
        head=nn.Linear(6, 5),
    )


@dataclasses.dataclass(frozen=True)
class Break:
    """A broken rule, the net it is seen on, and the checks that must see it. The other checks
    either pass or cannot run."""

    rule: Rule
    op: str
    net: Callable[[], nn.Module]
    seen_by: frozenset[str]


def breaks(rule: Rule, op: str, net: Callable[[], nn.Module], *seen_by: str) -> Break:
    return Break(rule, f"aten::{op}", net, frozenset(seen_by))


P, Z, R, S = "permutation", "zero mask", "restricted statistics", "structure"
ATTENTION = "scaled_dot_product_attention"
BREAKS = [
    breaks(untied_pointwise, "mul", gated, P, Z, R),
    breaks(untied_attention, ATTENTION, attention, P, Z, R),
    breaks(attention_without_a_pinned_scale, ATTENTION, attention, Z, R),
    breaks(attention_without_a_pinned_scale, ATTENTION, normed_queries, R),
    breaks(column_major_view, "view", pooled_heads, P, Z, R),
    breaks(reversed_cat, "cat", joined, P, Z, R),
    breaks(interleaved_chunks, "chunk", halves, P, Z, R),
    breaks(reversed_split, "split_with_sizes", uneven, P, Z, R),
    breaks(taken_for_pointwise, "cumsum", running, P),
    breaks(taken_for_pointwise, "roll", rolled, P, Z, R),
    breaks(tiles_inside, "repeat", tiled, P, Z, R),
    breaks(convolution_blind_to_groups, "conv1d", grouped, P, S),
    breaks(untied_layer_norm, "layer_norm", normed, P, S),
    breaks(layer_norm_without_statistics, "layer_norm", normed, Z, R),
    breaks(softmax_without_statistics, "softmax", shares, Z, R),
    breaks(group_norm_without_resizing, "group_norm", group_normed, Z, R),
    breaks(layer_norm_without_resizing, "layer_norm", normed, S),
    breaks(slice_that_stays, "slice", tail, S),
]
