"""The term algebra: normal forms, unification, cutting and viewing, against torch's own views."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunec.compiler.ir.terms import (
    UNIT,
    Concat,
    Fixed,
    Product,
    Reason,
    Term,
    Var,
    block,
    concat,
    cut,
    factor,
    leaves,
    product,
    resolve,
    same,
    unify,
    variables,
)
from prunec.compiler.ir.views import fitted, reshape
from prunec.compiler.rewrite.slicing import term_indices, term_labels

WHY = Reason("a test")


def fixed(size: int | None) -> Fixed:
    return Fixed(size, WHY)


# normal forms


def test_an_unbound_variable_is_its_own_normal_form() -> None:
    v = Var(4)
    assert resolve(v) is v


def test_a_bound_variable_resolves_to_the_end_of_its_chain() -> None:
    a, b, c = Var(4), Var(4), Var(4)
    unify(b, c, WHY)
    unify(a, b, WHY)
    assert resolve(c) is resolve(b) is resolve(a)


def test_products_and_concatenations_are_flattened() -> None:
    a, b, c = Var(2), Var(3), Var(4)
    assert same(product((a, product((b, c)))), Product((a, b, c)))
    assert same(concat((concat((a, b)), c)), Concat((a, b, c)))


def test_factors_of_size_one_and_empty_parts_vanish() -> None:
    v = Var(4)
    assert product((UNIT, v, UNIT)) is v
    assert concat((fixed(0), v)) is v
    assert product(()) is UNIT


def test_neighbouring_fixed_extents_merge() -> None:
    v = Var(4)
    term = product((fixed(2), fixed(3), v))
    assert isinstance(term, Product)
    assert [f.size for f in term.factors] == [6, 4]
    term = concat((fixed(2), fixed(3), v, fixed(1)))
    assert isinstance(term, Concat)
    assert [p.size for p in term.parts] == [5, 4, 1]


def test_what_fixed_a_single_entry_is_no_reason_beside_another() -> None:
    assert concat((UNIT, fixed(3))).reason == WHY  # type: ignore[union-attr]
    assert concat((fixed(3), UNIT)).reason == WHY  # type: ignore[union-attr]
    a, b = Var(4), Var(3)
    unify(a, concat((UNIT, b)), WHY)
    unify(a, concat((b, UNIT)), WHY)  # overlapping: each entry becomes the next one
    assert resolve(a).reason == Reason("cut into single entries")  # type: ignore[union-attr]


def test_an_unknown_extent_makes_its_neighbour_unknown() -> None:
    merged = product((fixed(None), fixed(3)))
    assert merged.size is None


def test_leaves_come_in_row_major_order_and_variables_once() -> None:
    a, b = Var(2), Var(3)
    term = concat((product((a, b)), a))
    assert list(leaves(term)) == [a, b, a]
    assert variables(term) == [a, b]


# unification


def test_two_variables_become_one() -> None:
    a, b = Var(4), Var(4)
    unify(a, b, WHY)
    assert same(a, b)
    assert isinstance(resolve(a), Var)


def test_a_fixed_extent_fixes_what_it_meets_with_its_own_reason() -> None:
    v = Var(4)
    unify(v, Fixed(4, Reason("model output")), WHY)
    term = resolve(v)
    assert isinstance(term, Fixed)
    assert term.reason.text == "model output"


def test_different_sizes_fix_both_sides_for_the_given_reason() -> None:
    a, b = Var(4), Var(6)
    unify(a, b, WHY)
    for v in (a, b):
        term = resolve(v)
        assert isinstance(term, Fixed)
        assert term.reason is WHY


def test_products_unify_factor_by_factor_and_split_the_longer() -> None:
    whole, a, b = Var(24), Var(4), Var(6)
    unify(product((whole,)), product((a, b)), WHY)
    assert same(whole, Product((a, b)))
    c, d, e = Var(2), Var(12), Var(3)
    unify(product((c, d)), product((Var(8), e)), WHY)
    assert [f.size for f in resolve(product((c, d))).factors] == [2, 4, 3]  # type: ignore[union-attr]


def test_products_without_a_common_refinement_are_fixed() -> None:
    left, right = [Var(6), Var(4)], [Var(4), Var(6)]
    unify(product(left), product(right), WHY)
    assert all(isinstance(resolve(v), Fixed) for v in (*left, *right))


def test_concatenations_refine_each_other_at_all_cut_points() -> None:
    a, b, c, d = Var(4), Var(8), Var(7), Var(5)
    unify(concat((a, b)), concat((c, d)), WHY)
    assert [t.size for t in leaves(concat((a, b)))] == [4, 3, 5]
    assert same(concat((a, b)), concat((c, d)))


def test_a_product_cut_by_a_concatenation_distributes() -> None:
    """(3 * inner) = q + k + v: the three pieces are one width."""
    outer, inner = Var(3), Var(8)
    q, k, v = Var(8), Var(8), Var(8)
    unify(product((outer, inner)), concat((q, k, v)), WHY)
    assert resolve(q) is resolve(k) is resolve(v) is resolve(inner)
    assert isinstance(resolve(outer), Fixed)


def test_a_product_against_parts_that_end_inside_it_is_cut_where_both_end() -> None:
    """(4 * 3) = 3 + 3 * (1 + 2): the first part is one row, and rows are 1 + 2."""
    rows, row = Var(4), Var(3)
    first, others, tail = Var(3), Var(3), Var(2)
    parts = concat((first, product((others, concat((fixed(1), tail))))))
    unify(product((rows, row)), parts, WHY)
    assert [t.size for t in leaves(row)] == [1, 2]
    assert resolve(others) in variables(rows)
    assert same(row, concat((fixed(1), tail)))


def test_a_variable_within_itself_is_fixed() -> None:
    v = Var(4)
    unify(v, Product((v,)), WHY)
    assert resolve(v) is v
    other = Var(4)
    term = Concat((other, Fixed(0, WHY)))
    unify(other, term, WHY)
    assert isinstance(resolve(other), Var)
    loop = Var(4)
    unify(loop, Concat((Product((loop, UNIT)), Fixed(0, WHY))), WHY)
    assert resolve(loop).size == 4


def test_block_fixes_every_variable_of_a_term() -> None:
    a, b = Var(2), Var(3)
    block(concat((product((a, b)), a)), WHY)
    assert isinstance(resolve(a), Fixed)
    assert isinstance(resolve(b), Fixed)


# cut, factor, reshape


def test_factor_splits_a_variable_row_major() -> None:
    v = Var(12)
    pair = factor(v, 3)
    assert pair is not None
    assert [t.size for t in pair] == [3, 4]
    assert same(v, Product(pair))


def test_factor_of_a_concatenation_ties_the_inner_parts() -> None:
    a, b = Var(8), Var(12)
    pair = factor(concat((a, b)), 5)
    assert pair is not None
    outer, inner = pair
    assert [t.size for t in leaves(outer)] == [2, 3]
    assert inner.size == 4
    assert same(resolve(a).factors[1], resolve(b).factors[1])  # type: ignore[union-attr]


def test_factor_across_a_part_is_refused() -> None:
    assert factor(concat((Var(3), Var(5))), 2) is None
    assert factor(Product((Var(4), Var(6))), 6) is None
    assert factor(Var(7), 2) is None


def test_cut_inside_a_product_fixes_it() -> None:
    term = Product((Var(3), Var(4)))
    pieces = cut(term, [6, 6], WHY)
    assert all(isinstance(p, Fixed) for p in pieces)
    assert variables(term) == []


def test_cut_at_multiples_of_the_inner_size_cuts_the_outer() -> None:
    outer, inner = Var(3), Var(4)
    pieces = cut(Product((outer, inner)), [8, 0, 4], WHY)
    assert [p.size for p in pieces] == [8, 0, 4]
    assert resolve(inner) in variables(pieces[0])


def test_reshape_of_sizes_that_do_not_match_is_refused() -> None:
    assert reshape([Var(4)], [3], WHY) is None
    assert reshape([fixed(None), Var(4)], [2, 2], WHY) is None
    assert reshape([Var(4)], [0], WHY) is None


def test_reshape_keeps_axes_it_does_not_touch() -> None:
    a, b = Var(4), Var(6)
    out = reshape([a, UNIT, b], [4, 2, 3, 1], WHY)
    assert out is not None
    assert out[0] is a
    assert same(product(out[1:]), b)


def test_fitted_gives_the_difference_to_the_dynamic_extent() -> None:
    v, w = Var(4), Var(2)
    assert fitted(Product((fixed(3), v)), 20).size == 20
    assert [t.size for t in leaves(fitted(Concat((v, fixed(7))), 15))] == [4, 11]
    assert fitted(Product((v, w)), 12).size == 8  # nothing in it is dynamic


# properties


SIZES = st.sampled_from([2, 3, 4, 6, 8, 12])


@st.composite
def terms(
    draw: st.DrawFn, size: int, depth: int = 3, pool: dict[int, list[Var]] | None = None
) -> Term:
    """A random term of a given size; with a `pool`, variables may occur again."""
    known = (pool or {}).get(size, [])
    kinds = ["var", "fixed"] if size > 1 else ["fixed"]
    kinds += ["again"] * 2 if known else []
    if depth and size > 1:
        kinds += ["concat", "var"]
        divisors = [d for d in range(2, size) if size % d == 0]
        kinds += ["product"] * 2 if divisors else []
    kind = draw(st.sampled_from(kinds))
    if kind == "again":
        return draw(st.sampled_from(known))
    if kind == "var":
        var = Var(size)
        if pool is not None:
            pool.setdefault(size, []).append(var)
        return var
    if kind == "fixed":
        return Fixed(size, WHY)
    if kind == "concat":
        first = draw(st.integers(1, size - 1))
        parts = [draw(terms(s, depth - 1, pool)) for s in (first, size - first)]
        return concat(parts)
    outer = draw(st.sampled_from([d for d in range(2, size) if size % d == 0]))
    return product([draw(terms(s, depth - 1, pool)) for s in (outer, size // outer)])


def positions(term: Term) -> list[tuple[object, ...]]:
    """For each position, which entry of which leaf it is: what two equal terms agree on."""
    term = resolve(term)
    if isinstance(term, Var):
        return [((term.serial, i),) for i in range(term.size)]
    if isinstance(term, Fixed):
        return [(("fixed", None),)] * (term.size or 0)
    if isinstance(term, Concat):
        return [p for part in term.parts for p in positions(part)]
    grids = itertools.product(*(positions(f) for f in term.factors))
    merged = [tuple(sorted((x for p in row for x in p), key=str)) for row in grids]
    return [tuple(x for x in row if x != ("fixed", None)) or (("fixed", None),) for row in merged]


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES)
def test_unified_terms_are_equal_entry_by_entry(data: st.DataObject, size: int) -> None:
    pool: dict[int, list[Var]] = {}
    a, b = data.draw(terms(size, pool=pool)), data.draw(terms(size, pool=pool))
    unify(a, b, WHY)
    assert resolve(a).size == resolve(b).size == size
    assert positions(a) == positions(b)


@settings(max_examples=60, deadline=None)
@given(st.data(), SIZES)
def test_unification_is_settled_after_one_time(data: st.DataObject, size: int) -> None:
    pool: dict[int, list[Var]] = {}
    a, b = data.draw(terms(size, pool=pool)), data.draw(terms(size, pool=pool))
    unify(a, b, WHY)
    before = positions(a), positions(b)
    unify(a, b, WHY)
    assert (positions(a), positions(b)) == before


def draw_kept(data: st.DataObject, *all_terms: Term) -> dict[Var, Tensor]:
    """Random kept entries of every variable, in a random order."""
    kept: dict[Var, Tensor] = {}
    for term in all_terms:
        for var in variables(term):
            if var not in kept:
                order = data.draw(st.permutations(range(var.size)))
                count = data.draw(st.integers(1, var.size))
                kept[var] = torch.tensor(order[:count])
    return kept


def taken(tensor: Tensor, axes: list[Term], kept: dict[Var, Tensor]) -> Tensor:
    for axis, term in enumerate(axes):
        tensor = tensor.index_select(axis, term_indices(term, kept))
    return tensor


def new_sizes(axes: list[Term], kept: dict[Var, Tensor]) -> list[int]:
    return [len(term_indices(term, kept)) for term in axes]


@st.composite
def views(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes with the same number of entries."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped() -> list[int]:
        cuts = sorted(draw(st.sets(st.integers(1, len(factors)), max_size=3)) | {len(factors)})
        starts = [0, *cuts[:-1]]
        return [math.prod(factors[i:j]) for i, j in zip(starts, cuts, strict=True)]

    return grouped(), grouped()


@settings(max_examples=150, deadline=None)
@given(st.data(), views())
def test_taking_entries_commutes_with_view(
    data: st.DataObject, shapes: tuple[list[int], list[int]]
) -> None:
    before, after = shapes
    pool: dict[int, list[Var]] = {}
    axes = [data.draw(terms(s, depth=2, pool=pool)) if s > 1 else UNIT for s in before]
    out = reshape(axes, after, WHY)
    assert out is not None
    assert [t.size for t in out] == after
    kept = draw_kept(data, *axes, *out)
    whole = torch.arange(math.prod(before)).reshape(before)
    assert torch.equal(
        taken(whole, axes, kept).reshape(new_sizes(out, kept)),
        taken(whole.reshape(after), out, kept),
    )


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_taking_entries_commutes_with_split(data: st.DataObject, sizes: list[int]) -> None:
    term = data.draw(terms(sum(sizes), pool={})) if sum(sizes) > 1 else UNIT
    pieces = cut(term, sizes, WHY)
    kept = draw_kept(data, term, *pieces)
    whole = torch.arange(sum(sizes))
    split = taken(whole, [term], kept).split([len(term_indices(p, kept)) for p in pieces])
    for piece, found, original in zip(pieces, split, whole.split(sizes), strict=True):
        assert torch.equal(found, taken(original, [piece], kept))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_taking_entries_commutes_with_cat(data: st.DataObject, sizes: list[int]) -> None:
    parts = [data.draw(terms(s, depth=2)) if s > 1 else UNIT for s in sizes]
    kept = draw_kept(data, *parts)
    whole = torch.arange(sum(sizes))
    joined = torch.cat(
        [taken(x, [p], kept) for x, p in zip(whole.split(sizes), parts, strict=True)]
    )
    assert torch.equal(joined, taken(whole, [concat(parts)], kept))


@settings(max_examples=60, deadline=None)
@given(st.data(), SIZES)
def test_labels_say_which_entry_each_position_belongs_to(data: st.DataObject, size: int) -> None:
    term = data.draw(terms(size, pool={}))
    for var in variables(term):
        gone = data.draw(st.integers(0, var.size - 1))
        keep = torch.tensor([i for i in range(var.size) if i != gone])
        expected = torch.ones(size, dtype=torch.bool)
        expected[term_indices(term, {var: keep})] = False
        assert torch.equal((term_labels(term, var) == gone).any(0), expected)


@pytest.mark.parametrize("size", [1, 5])
def test_a_product_in_which_a_variable_stands_twice_is_taken_in_both_places(size: int) -> None:
    v = Var(5)
    kept = {v: torch.arange(size)}
    grid = torch.arange(25).reshape(5, 5)[:size, :size].reshape(-1)
    assert torch.equal(term_indices(Product((v, v)), kept), grid)


def test_a_position_of_a_width_times_itself_belongs_to_two_entries() -> None:
    v = Var(3)
    rows = term_labels(Product((v, v)), v)
    assert [set(column) - {-1} for column in rows.T.tolist()] == [
        {i, j} for i in range(3) for j in range(3)
    ]
