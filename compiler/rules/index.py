"""Indexing by tensors: a known index selects entries; by another the indexed axis is fixed."""

from __future__ import annotations

from typing import Any

from ..inference.rule import Numbers, RuleContext, Terms, op_rule
from ..ir.terms import UNIT, Term, resolve, variables


@op_rule("aten::index", "aten::_unsafe_index")
def index(c: RuleContext, x: Any, indices: Any) -> Terms:
    """x[i, j, :]: index tensors broadcast together and take the place of the axes they index
    (the front, when axes between them are left alone)."""
    terms = c.terms(x)
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if any(
        i.meta["val"].dtype.is_floating_point is False
        and str(i.meta["val"].dtype) in ("torch.bool", "torch.uint8")
        for _, i in given
    ):
        return _boolean(c, x, given)
    _pass_numbers(c, x)
    if len(given) == 1:
        selected = _selected(c, terms, *given[0])
        if selected is not None:
            return selected
    for axis, i in given:
        _address(c, terms[axis], i, "indexed by a tensor")
    from .pointwise import broadcast

    rank = max(len(c.terms(i)) for _, i in given)
    looked_up = broadcast(c, [i for _, i in given], rank)
    axes = [axis for axis, _ in given]
    rest = [t for axis, t in enumerate(terms) if axis not in axes]
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    at = axes[0] if adjacent else 0
    return [*rest[:at], *looked_up, *rest[at:]]


def _address(c: RuleContext, term: Term, index: Any, text: str) -> None:
    """An axis looked up by a tensor is the dimension whose entries that numbers, or fixed."""
    numbered = c.addressed(index)
    if numbered is None:
        c.block(term, text)
    else:
        c.unify(term, numbered, text)


def _pass_numbers(c: RuleContext, x: Any) -> None:
    """What is looked up in a list of numbers are such numbers."""
    numbered = c.addressed(x)
    if numbered is not None:
        c.numbered(Numbers(numbered))


def _selected(c: RuleContext, terms: Terms, axis: int, index: Any) -> Terms | None:
    """Entries of an axis by an index that is the same on every call; each at most once, since what
    repeats them is a table look-up."""
    value, size = c.constant(index), resolve(terms[axis]).size
    if value is None or value.dim() != 1 or not size or not variables(terms[axis]):
        return None
    entries = [i % size for i in value.tolist()]
    if not entries or len(set(entries)) < len(entries):
        return None
    c.block_all(index, "an index of entries")
    return [*terms[:axis], c.gathered(axis, terms[axis], entries), *terms[axis + 1 :]]


def _boolean(c: RuleContext, x: Any, given: list[Any]) -> Terms:
    terms = c.terms(x)
    for axis, i in given:
        for k in range(max(1, len(c.terms(i)))):
            c.block(terms[axis + k], "indexed by a mask")
        c.block_all(i, "used as a mask index")
    if len(given) == 1:
        axis, i = given[0]
        n = len(c.terms(i))
        return [*terms[:axis], c.fixed(c.out_shape[axis], "data dependent"), *terms[axis + n :]]
    c.block_all(x, "indexed by several masks")
    return [c.fixed(s) for s in c.out_shape]


@op_rule("aten::gather")
def gather(c: RuleContext, x: Any, dim: int, index: Any) -> Terms:
    _pass_numbers(c, x)
    terms, places = c.terms(x), c.terms(index)
    axis = c.axis(dim, len(terms))
    for i, (a, b) in enumerate(zip(terms, places, strict=True)):
        if i == axis:
            _address(c, a, index, "gathered along it")
        elif resolve(a).size == resolve(b).size:
            c.unify(a, b)
        else:
            c.block(a, "gathered in part")
            c.block(b, "gathered in part")
    return places


@op_rule("aten::take_along_dim")
def take_along_dim(c: RuleContext, x: Any, indices: Any, dim: Any) -> Terms:
    return gather(c, x, dim, indices)


@op_rule("aten::index_select")
def index_select(c: RuleContext, x: Any, dim: int, index: Any) -> Terms:
    terms = c.terms(x)
    axis = c.axis(dim, len(terms))
    selected = _selected(c, terms, axis, index)
    if selected is not None:
        return selected
    _pass_numbers(c, x)
    _address(c, terms[axis], index, "selected along it")
    terms[axis] = c.terms(index)[0] if c.terms(index) else UNIT
    return terms


@op_rule(
    "aten::scatter",
    "aten::scatter_add",
    "aten::scatter_reduce",
    "aten::index_add",
    "aten::index_copy",
    "aten::index_fill",
    "aten::masked_scatter",
)
def scatter(c: RuleContext, x: Any, dim: Any, src: Any, index: Any, source: Any) -> Terms:
    terms = c.terms(x)
    axis = None if dim is None else c.axis(dim, len(terms))
    for other in (src, index, source):
        places = c.terms(other)
        if len(places) != len(terms):
            c.block_all(other, "scattered")
            continue
        for i, (a, b) in enumerate(zip(terms, places, strict=True)):
            if i == axis or axis is None:
                c.block(b, "scattered along it")
            elif resolve(a).size == resolve(b).size:
                c.unify(a, b)
            else:
                c.block(a, "scattered in part")
                c.block(b, "scattered in part")
    for i, term in enumerate(terms):
        if i == axis:
            _address(c, term, index, "scattered along it")
        elif axis is None:
            c.block(term, "scattered along it")
    return terms


@op_rule("aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put")
def index_put(c: RuleContext, x: Any, indices: Any, values: Any) -> Terms:
    terms = c.terms(x)
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    covered = 0
    for axis, i in given:
        mask = str(i.meta["val"].dtype) in ("torch.bool", "torch.uint8")
        span = max(1, len(c.terms(i))) if mask else 1
        for k in range(span):
            c.block(terms[axis + k], "written at an index")
        covered += span
        c.block_all(i, "used as an index")
    contiguous = [axis for axis, _ in given] == list(range(len(given)))
    rest = terms[covered:] if contiguous else []
    stored = c.terms(values)
    lead = stored[: max(0, len(stored) - len(rest))]
    if not contiguous:
        c.block_all(x, "written at an index")
        lead = stored
    for term in lead:
        c.block(term, "written at an index")
    for a, b in zip(reversed(rest), reversed(stored[len(lead) :]), strict=False):
        if resolve(b).size != 1:
            c.unify(a, b)
    return terms


@op_rule("aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter")
def view_scatter(c: RuleContext, x: Any, src: Any, dim: Any) -> Terms:
    terms = c.terms(x)
    axis = c.axis(dim or 0, len(terms))
    c.block(terms[axis], "written in part")
    others = c.terms(src)
    if len(others) == len(terms):
        c.block(others[axis], "written in part")
        others = [t for i, t in enumerate(others) if i != axis]
    for a, b in zip([t for i, t in enumerate(terms) if i != axis], others, strict=True):
        c.unify(a, b)
    return terms


@op_rule("aten::bucketize", "aten::searchsorted")
def bucketize(c: RuleContext, x: Any, boundaries: Any, sorted_sequence: Any) -> Terms:
    table = boundaries if boundaries is not None else sorted_sequence
    c.block_all(table, "a sorted table")
    return c.terms(x) if sorted_sequence is None else [c.fixed(s) for s in c.out_shape]
