"""Pointwise ops: operands broadcast against each other, aligned at the last axis.

The generic row serves every op that torch itself tags pointwise; the others here are pointwise by
their documentation but carry no tag.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.terms import UNIT, resolve

UNTAGGED = (
    "dropout feature_dropout alpha_dropout feature_alpha_dropout contiguous to _to_copy "
    "clone detach alias lift_fresh lift_fresh_copy rsub fill copy zero hardswish "
    "hardsigmoid zeros_like ones_like full_like empty_like rand_like randn_like where "
    "masked_fill bernoulli __and__ __or__ __xor__ floor_divide true_divide divide "
    "multiply subtract square relu6 log_sigmoid mish selu celu "
    "clip lerp uniform normal positive _conj resolve_conj resolve_neg real imag conj "
    "requires_grad_ nan_to_num softplus greater less greater_equal less_equal not_equal "
    "eq ne rrelu special_expit special_erf _assert_async pow arctan2 atan2 fmod remainder "
    "isclose logit special_xlog1py xlogy clamp _autocast_to_reduced_precision "
    "_autocast_to_full_precision"
).split()


@op_rule("prunec::pointwise", *(f"aten::{name}" for name in UNTAGGED))
def pointwise(c: RuleContext) -> Any:
    operands = [n for n in c.node.all_input_nodes if c.terms(n)]
    rank = len(c.out_shape)
    if any(len(c.terms(n)) > rank for n in operands):
        raise ValueError("an operand has more axes than the result")
    out = broadcast(c, operands, rank)
    _mark_residual(c, operands, out)
    if isinstance(c.value, (tuple, list)):
        return tuple(list(out) for _ in c.value)
    return out


@op_rule("aten::type_as")
def type_as(c: RuleContext, x: Any) -> Terms:
    """The other operand gives its dtype only."""
    return c.terms(x)


def broadcast(c: RuleContext, operands: list[fx.Node], rank: int) -> Terms:
    """Unify the operands' axes, last with last; an axis of size 1 stretches and couples nothing."""
    out: Terms = [UNIT] * rank
    for node in operands:
        terms = c.terms(node)
        for axis, term in zip(range(rank - len(terms), rank), terms, strict=True):
            if resolve(term).size == 1:
                continue
            if resolve(out[axis]).size == 1:
                out[axis] = term
            else:
                c.unify(out[axis], term)
    return out


def _mark_residual(c: RuleContext, operands: list[fx.Node], out: Terms) -> None:
    """A sum of two activations makes a stream: what it couples is a residual width."""
    if c.op not in ("add", "sub"):
        return
    if len(operands) == 2 and all(map(c.is_activation, operands)):
        origins = [c.inference.origins.get(n) for n in operands]
        if origins[0] == origins[1]:  # one layer's result and a function of it (gelu, rotary)
            return
        for axis in range(len(out)):
            carriers = [
                n
                for n in operands
                if len(c.terms(n)) >= len(out) - axis
                and resolve(c.terms(n)[axis - len(out)]).size != 1
            ]
            if len(carriers) == 2:
                c.role(out[axis], "residual")


@op_rule("aten::broadcast_tensors")
def broadcast_tensors(c: RuleContext) -> tuple[Terms, ...]:
    """Each operand stretched against all others."""
    rank = max(len(v.shape) for v in c.value)
    out = broadcast(c, [n for n in c.node.all_input_nodes if c.terms(n)], rank)
    return tuple(list(out) for _ in c.value)


@op_rule("aten::isin")
def isin(c: RuleContext, elements: Any, test_elements: Any) -> Terms:
    """Each element looked up in a list whose order and axes do not matter."""
    c.block_all(test_elements, "a list that is looked up")
    return c.terms(elements)


@op_rule("aten::prelu")
def prelu(c: RuleContext, x: Any, weight: Any) -> Terms:
    terms = c.terms(x)
    slope = c.terms(weight)
    if slope and resolve(slope[0]).size != 1 and len(terms) > 1:
        c.unify(slope[0], terms[1])
    return terms


@op_rule("aten::glu")
def glu(c: RuleContext, x: Any, dim: int) -> Terms:
    terms = c.terms(x)
    axis = c.axis(dim, len(terms))
    half = c.out_shape[axis]
    assert half is not None
    from ..ir.terms import cut

    a, b = cut(terms[axis], [half, half], c.reason("glu halves the axis"))
    c.unify(a, b)
    terms[axis] = a
    return terms


@op_rule("aten::native_dropout")
def native_dropout(c: RuleContext, x: Any) -> Any:
    return c.terms(x), c.terms(x)


@op_rule("aten::complex", "aten::polar")
def complex_pair(c: RuleContext) -> Terms:
    return broadcast(c, [n for n in c.node.all_input_nodes if c.terms(n)], len(c.out_shape))


@op_rule("aten::view_as_real")
def view_as_real(c: RuleContext, x: Any) -> Terms:
    return [*c.terms(x), c.fixed(2, "real and imaginary part")]


@op_rule("aten::view_as_complex")
def view_as_complex(c: RuleContext, x: Any) -> Terms:
    *terms, pair = c.terms(x)
    c.block(pair, "real and imaginary part")
    return terms


@op_rule(
    "aten::_assert_tensor_metadata",
    "aten::_assert_scalar",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
    "aten::_assert_async",
)
def no_result(c: RuleContext) -> None:
    return None


@op_rule("aten::item", "aten::_local_scalar_dense", "aten::sym_size", "aten::sym_numel")
def scalar(c: RuleContext, x: Any) -> None:
    """A number taken from a tensor: a size is rewritten where it is used, a value is its own."""
    return None
