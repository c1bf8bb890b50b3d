"""Ops that work on the last axes, position by position of the leading ones: pooling, resizing."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.program import shape_of
from ..ir.terms import factor, product

BY_RANK = {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d "
    "upsample_linear1d reflection_pad1d replication_pad1d max_pool1d_with_indices "
    "_upsample_nearest_exact1d",
    2: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "_adaptive_avg_pool2d reflection_pad2d replication_pad2d max_pool2d_with_indices "
    "_upsample_nearest_exact2d fractional_max_pool2d",
    3: "max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d "
    "upsample_trilinear3d reflection_pad3d replication_pad3d max_pool3d_with_indices "
    "_upsample_nearest_exact3d _adaptive_avg_pool3d",
}


def _spatial(rank: int) -> Any:
    def rule(c: RuleContext, x: Any) -> Any:
        terms = _fixed_in_space(c, x, rank)
        lead = len(terms) - rank
        if isinstance(c.value, (tuple, list)):
            return tuple(_result(c, terms[:lead], shape_of(v)) for v in c.value)
        return _result(c, terms[:lead], c.out_shape)

    return rule


def _fixed_in_space(c: RuleContext, x: Any, rank: int) -> Terms:
    """The terms of x, whose last `rank` axes may not change."""
    terms = c.terms(x)
    for term in terms[len(terms) - rank :]:
        c.block(term, "spatial axis")
    return terms


def _result(c: RuleContext, lead: Terms, shape: list[int | None]) -> Terms:
    return [*lead, *(c.fixed(s, "spatial axis") for s in shape[len(lead) :])]


for _rank, _names in BY_RANK.items():
    op_rule(*(f"aten::{name}" for name in _names.split()))(_spatial(_rank))


@op_rule("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")
def grid_sampler(c: RuleContext, x: Any, grid: Any) -> Terms:
    terms = c.terms(x)
    for term in (*terms[2:], *c.terms(grid)[1:]):
        c.block(term, "sampling grid")
    c.unify(terms[0], c.terms(grid)[0])
    return _result(c, terms[:2], c.out_shape)


@op_rule("aten::pixel_shuffle")
def pixel_shuffle(c: RuleContext, x: Any, upscale_factor: int) -> Terms:
    """[..., C*r*r, H, W] to [..., C, H*r, W*r]."""
    terms = _fixed_in_space(c, x, 2)
    size = c.out_shape[-3]
    assert size is not None
    pair = factor(terms[-3], size)
    if pair is None:
        c.block(terms[-3], "pixel_shuffle cuts across it")
        return [*terms[:-3], *(c.fixed(s) for s in c.out_shape[-3:])]
    c.block(pair[1], "pixel_shuffle moves it into space")
    return _result(c, [*terms[:-3], pair[0]], c.out_shape)


@op_rule("aten::pixel_unshuffle")
def pixel_unshuffle(c: RuleContext, x: Any, downscale_factor: int) -> Terms:
    terms = _fixed_in_space(c, x, 2)
    channel = product((terms[-3], c.fixed(downscale_factor**2, "pixels of a block")))
    return _result(c, [*terms[:-3], channel], c.out_shape)


@op_rule("aten::im2col")
def im2col(c: RuleContext, x: Any, kernel_size: Any) -> Terms:
    terms = _fixed_in_space(c, x, 2)
    lead = len(terms) - 3
    window = c.fixed(kernel_size[0] * kernel_size[1], "sliding window")
    return [*terms[:lead], product((terms[lead], window)), c.fixed(c.out_shape[-1], "windows")]


@op_rule("aten::col2im")
def col2im(c: RuleContext, x: Any, kernel_size: Any) -> Terms:
    terms = _fixed_in_space(c, x, 1)
    lead = len(terms) - 2
    size = c.out_shape[lead]
    assert size is not None
    pair = factor(terms[lead], size)
    if pair is None:
        c.block(terms[lead], "windows cut across it")
        return _result(c, terms[:lead], c.out_shape)
    c.block(pair[1], "sliding window")
    return _result(c, [*terms[:lead], pair[0]], c.out_shape)
