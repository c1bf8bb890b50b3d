"""Reductions. A sum is exact where removed entries are zero; a mean, norm or extremum is not."""

from __future__ import annotations

import operator
from typing import Any

from ..inference.rule import NodeRewriter, Numbers, RuleContext, Terms, fixed_terms, op_rule
from ..ir.program import shape_of
from ..ir.terms import UNIT, Term, resolve, variables
from .pointwise import pointwise


def reduced_axes(c: RuleContext, x: Any, dim: Any) -> list[int]:
    """The axes a reduction runs over, non-negative; no `dim` means all."""
    rank = len(c.terms(x))
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [c.axis(d, rank) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def remaining(c: RuleContext, x: Any, axes: list[int], keepdim: Any) -> Terms:
    """The terms left by a reduction over `axes`."""
    terms = c.terms(x)
    if keepdim:
        return [UNIT if i in axes else t for i, t in enumerate(terms)]
    return [t for i, t in enumerate(terms) if i not in axes]


@op_rule("aten::sum")
def sum_(c: RuleContext, x: Any, dim: Any, keepdim: Any) -> Terms:
    axes = reduced_axes(c, x, dim)
    out = remaining(c, x, axes, keepdim)
    for axis in axes:
        c.contract(c.terms(x)[axis], [(x, axis)], out, counted=False)
    return out


@op_rule(
    "aten::mean",
    "aten::var",
    "aten::std",
    "aten::amax",
    "aten::amin",
    "aten::logsumexp",
    "aten::linalg_vector_norm",
    "aten::norm",
    "aten::prod",
    "aten::any",
    "aten::all",
    "aten::nansum",
    "aten::nanmean",
    "aten::count_nonzero",
    "aten::frobenius_norm",
)
def statistic(c: RuleContext, x: Any, dim: Any, keepdim: Any) -> Terms:
    axes = reduced_axes(c, x, dim)
    name = c.op
    for axis in axes:
        c.statistic(c.terms(x)[axis], f"{name} over it")
        if name.startswith(("var", "std")):
            c.at_least(c.terms(x)[axis], 2)  # one entry has no sample variance
    return remaining(c, x, axes, keepdim)


@op_rule("aten::var_mean", "aten::std_mean", "aten::aminmax")
def two_statistics(c: RuleContext, x: Any, dim: Any, keepdim: Any) -> Any:
    out = statistic(c, x, dim, keepdim)
    return out, list(out)


@op_rule("aten::max", "aten::min")
def extremum(c: RuleContext, x: Any, dim: Any, keepdim: Any, other: Any) -> Any:
    if other is not None:
        return pointwise(c)
    if dim is None:
        return statistic(c, x, None, False)
    axes = reduced_axes(c, x, dim)
    if _second_result_is_used(c):
        c.numbered(None, _chosen(c, c.terms(x)[axes[0]], 1))
    out = statistic(c, x, axes, keepdim)
    return out, list(out)


def _second_result_is_used(c: RuleContext) -> bool:
    return any(user.target is not operator.getitem or user.args[1] for user in c.node.users)


def _chosen(c: RuleContext, term: Term, count: int) -> Numbers | None:
    """`count` entries of a term are chosen by value."""
    c.statistic(term, f"{c.op} chooses {count} of it")
    c.at_least(term, count)
    c.role(term, "expert")
    return Numbers(term) if variables(term) else None


@op_rule("aten::argmax", "aten::argmin")
def arg_extremum(c: RuleContext, x: Any, dim: Any, keepdim: Any) -> Terms:
    axes = reduced_axes(c, x, dim)
    if dim is not None:
        c.numbered(_chosen(c, c.terms(x)[axes[0]], 1))
        return remaining(c, x, axes, keepdim)
    for axis in axes:
        c.block(c.terms(x)[axis], "the index of an entry is taken")
    return remaining(c, x, axes, keepdim)


@op_rule("aten::topk")
def topk(c: RuleContext, x: Any, k: Any, dim: Any) -> Any:
    terms = c.terms(x)
    axis = c.axis(dim, len(terms))
    if not isinstance(k, int):
        c.block(terms[axis], "a number of entries not known at capture is chosen")
        k = _size(c, axis)
    elif _second_result_is_used(c):
        c.numbered(None, _chosen(c, terms[axis], k))
    else:
        c.statistic(terms[axis], f"the first {k} of it")
        c.at_least(terms[axis], k)
    terms[axis] = c.fixed(k, "ranked")
    return terms, list(terms)


@op_rule("aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::diff")
def ordered(c: RuleContext, x: Any, dim: Any) -> Terms:
    terms = c.terms(x)
    axis = c.axis(-1 if dim is None else dim, len(terms))
    counted = c.addressed(x, "counts") if c.op == "cumsum" and len(terms) == 1 else None
    if counted is not None:  # where each entry's rows end, once rows are sorted by entry
        c.numbered(Numbers(counted, "offsets"))
        return terms
    c.block(terms[axis], "its order matters")
    terms[axis] = c.fixed(c.out_shape[axis], "its order matters") if terms else UNIT
    return terms


@op_rule("aten::cummax", "aten::cummin", "aten::sort", "aten::kthvalue", "aten::mode")
def ordered_pair(c: RuleContext, x: Any, dim: Any) -> Any:
    terms = c.terms(x)
    axis = c.axis(-1 if dim is None else dim, len(terms))
    c.block(terms[axis], "its entries are ranked")
    numbered = c.addressed(x) if c.op == "sort" else None
    if numbered is not None:
        c.numbered(Numbers(numbered), None)
    if len(c.value[0].shape) == len(terms):
        terms[axis] = c.fixed(_size(c, axis), "ranked")
    else:
        terms.pop(axis)
    return terms, list(terms)


def _size(c: RuleContext, axis: int) -> int | None:
    return shape_of(c.value[0])[axis]


@op_rule("aten::argsort")
def argsort(c: RuleContext, x: Any, dim: Any) -> Terms:
    terms = c.terms(x)
    c.addressed(x)  # an order by number is one of many: what is sorted by it is put back
    if terms:
        c.block(terms[-1 if dim is None else dim], "its entries are ranked")
    return terms


@op_rule("aten::one_hot")
def one_hot(c: RuleContext, x: Any, num_classes: int) -> Terms:
    if num_classes == c.out_shape[-1] and _numbers_all(c, x, num_classes):
        classes = c.addressed(x)
        assert classes is not None
        c.resize_scalar("num_classes", classes)
        return [*c.terms(x), classes]
    return [*c.terms(x), c.fixed(c.out_shape[-1], "one-hot classes")]


def _numbers_all(c: RuleContext, x: Any, size: Any) -> bool:
    """Whether x numbers entries of a dimension of this size."""
    numbers = c.inference.numbers.get(x)
    if not isinstance(numbers, Numbers) or numbers.what != "entries":
        return False
    return numbers.term.size == size


@op_rule("aten::histc")
def histc(c: RuleContext, x: Any, bins: Any, min: Any, max: Any) -> Any:
    """One bin for each entry counts how often it was chosen."""
    if not (_numbers_all(c, x, bins) and min == 0 and max == bins - 1):
        return counted(c, x)
    entries = c.addressed(x)
    assert entries is not None

    def rewrite(rw: NodeRewriter) -> None:
        if rw.changed(entries):
            rw.set("bins", rw.size(entries))
            rw.set("max", rw.size(entries) - 1)

    c.on_rewrite(rewrite)
    c.numbered(Numbers(entries, "counts"))
    return [entries]


@op_rule(
    "aten::bincount",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
)
def counted(c: RuleContext, x: Any) -> Any:
    c.block_all(x, "entries are counted or located")
    return fixed_terms(c.value, c.reason("data dependent"))


@op_rule("aten::cdist")
def cdist(c: RuleContext, x1: Any, x2: Any) -> Terms:
    s, t = c.terms(x1), c.terms(x2)
    c.unify(s[-1], t[-1])
    c.statistic(s[-1], "a distance over it")
    for a, b in zip(s[:-2], t[:-2], strict=False):
        if 1 not in (resolve(a).size, resolve(b).size):
            c.unify(a, b)
    lead = s[:-2] if len(s) >= len(t) else t[:-2]
    return [*lead, s[-2], t[-2]]
