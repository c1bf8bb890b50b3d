"""Normalisation layers: the axes they take statistics over become norm-coupled."""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.terms import factor, resolve


@op_rule("aten::layer_norm", "aten::rms_norm", "aten::_fused_rms_norm", "aten::native_layer_norm")
def layer_norm(c: RuleContext, x: Any, normalized_shape: Any, weight: Any, bias: Any) -> Any:
    terms = c.terms(x)
    own = terms[len(terms) - len(normalized_shape) :]
    for parameter in (weight, bias):
        for a, b in zip(c.terms(parameter), own, strict=False):
            c.unify(a, b)
    for term in own:
        c.statistic(term, f"{c.op} takes statistics over it")
    c.resize("normalized_shape", own)
    if isinstance(c.value, (tuple, list)):
        rest = [*terms[: len(terms) - len(own)], *(c.fixed(1) for _ in own)]
        return tuple([terms, rest, list(rest)][: len(c.value)])
    return terms


@op_rule("aten::group_norm", "aten::native_group_norm")
def group_norm(c: RuleContext, x: Any, num_groups: Any, weight: Any, bias: Any) -> Terms:
    if not isinstance(num_groups, int):
        raise ValueError("native_group_norm")
    terms = c.terms(x)
    for parameter in (weight, bias):
        if c.terms(parameter):
            c.unify(c.terms(parameter)[0], terms[1])
    pair = factor(terms[1], num_groups)
    if pair is None:
        c.block(terms[1], "normalisation groups cut across it")
        return terms
    c.statistic(pair[1], "group_norm takes statistics over it")
    for term in terms[2:]:
        c.statistic(term, "group_norm takes statistics over it")
    c.resize_scalar("num_groups", pair[0])
    return terms


@op_rule("aten::batch_norm", "aten::_native_batch_norm_legit_no_training", "aten::instance_norm")
def batch_norm(
    c: RuleContext,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any,
    use_input_stats: Any,
) -> Any:
    terms = c.terms(x)
    for parameter in (weight, bias, running_mean, running_var):
        if c.terms(parameter):
            c.unify(c.terms(parameter)[0], terms[1])
    if training or use_input_stats:
        for axis, term in enumerate(terms):
            if axis != 1 and resolve(term).size != 1:
                c.statistic(term, "batch statistics run over it")
    if isinstance(c.value, (tuple, list)):
        raise ValueError("several results")
    return terms


@op_rule("aten::_weight_norm", "aten::_weight_norm_interface")
def weight_norm(c: RuleContext, v: Any, g: Any, dim: Any) -> Any:
    """v * g / ||v||, the norm over all axes but `dim` (torch.nn.utils.weight_norm)."""
    terms = c.terms(v)
    keep = c.axis(dim or 0, len(terms))
    for axis, (a, b) in enumerate(zip(terms, c.terms(g), strict=True)):
        if axis == keep:
            c.unify(a, b)
            c.statistic(a, "a masked weight would be 0 / 0 under weight_norm")
        else:
            c.statistic(a, "weight_norm takes a norm over it")
    return (terms, c.terms(g)) if isinstance(c.value, (tuple, list)) else terms


@op_rule("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax")
def softmax(c: RuleContext, x: Any, dim: int) -> Terms:
    terms = c.terms(x)
    if terms:
        c.statistic(terms[dim], "softmax over it")
        c.role(terms[dim], "share")
    return terms


@op_rule("aten::cosine_similarity")
def cosine_similarity(c: RuleContext, x1: Any, x2: Any, dim: Any) -> Terms:
    from .contract import _batch

    out = _batch(c, c.terms(x1), c.terms(x2))
    axis = c.axis(1 if dim is None else dim, len(out))
    c.contract(out[axis], [(x1, axis - len(out)), (x2, axis - len(out))], out[:axis])
    return out[:axis] + out[axis + 1 :]
