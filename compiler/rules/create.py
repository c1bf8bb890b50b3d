"""Constructors: tensors made from sizes. Constant fills shrink; sequences are selected from."""

from __future__ import annotations

from ..inference.rule import RuleContext, Terms, op_rule


def _axes(c: RuleContext) -> Terms:
    return [
        c.fixed(size, "dynamic size") if size is None or c.symbolic(axis) else c.var(size)
        for axis, size in enumerate(c.out_shape)
    ]


@op_rule(
    "aten::zeros",
    "aten::ones",
    "aten::full",
    "aten::empty",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
    "aten::new_empty",
)
def filled(c: RuleContext) -> Terms:
    """A dynamic size may hold a width too, as batch x heads does."""
    terms: Terms = [
        c.var(size) if size is not None else c.fixed(None, "data-dependent size")
        for size in c.out_shape
    ]
    c.resize("size", terms)
    return terms


@op_rule(
    "aten::arange",
    "aten::linspace",
    "aten::logspace",
    "aten::rand",
    "aten::randn",
    "aten::randint",
    "aten::randperm",
    "aten::eye",
    "aten::hann_window",
    "aten::hamming_window",
    "aten::tril_indices",
    "aten::triu_indices",
    "aten::empty_strided",
    "aten::new_empty_strided",
)
def sequence(c: RuleContext) -> Terms:
    terms = _axes(c)
    c.generated(terms)
    return terms


@op_rule("aten::scalar_tensor", "aten::tensor")
def scalar_tensor(c: RuleContext) -> Terms:
    return []
