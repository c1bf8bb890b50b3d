"""Selections, terms that take entries of another: normal form, cutting, unification."""

from __future__ import annotations

import pytest
import torch

from prunec.compiler.ir.terms import (
    Fixed,
    Indexed,
    Reason,
    Var,
    block,
    concat,
    cut,
    factor,
    indexed,
    product,
    resolve,
    same,
    take,
    unify,
    variables,
)
from prunec.compiler.rewrite.slicing import gather_index, term_indices, term_labels

WHY = Reason("a test")
SHUFFLED = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]


def test_a_selection_of_a_selection_is_one() -> None:
    v = Var(10)
    once = indexed(v, SHUFFLED)
    twice = indexed(once, [3, 1])
    assert isinstance(twice, Indexed)
    assert twice.base is v
    assert twice.index == (6, 5)
    back = sorted(range(10), key=SHUFFLED.__getitem__)
    assert indexed(once, back) is v


def test_a_selection_holds_only_the_parts_it_takes_from() -> None:
    a, b, c = Var(3), Var(4), Var(2)
    picked = indexed(concat((a, b, c)), [8, 1, 7])
    assert variables(picked) == [a, c]
    assert same(indexed(concat((a, b, c)), [3, 4, 5, 6]), b)


def test_a_selection_from_fixed_entries_is_fixed() -> None:
    assert same(indexed(Fixed(6, WHY), [5, 1]), Fixed(2, WHY))
    v = Var(10)
    term = indexed(v, SHUFFLED)
    block(term, WHY)
    assert isinstance(resolve(term), Fixed)


def test_what_is_selected_never_becomes_empty() -> None:
    v = Var(10)
    pieces = cut(indexed(v, SHUFFLED), [5, 5], WHY)
    assert [len(variables(p)) for p in pieces] == [1, 1]
    for kept in range(8):
        (var,) = variables(v)
        for piece in pieces:
            assert len(term_indices(piece, {var: torch.tensor([kept])})) >= 1


@pytest.mark.parametrize("seed", range(8))
def test_selecting_after_a_cut_is_cutting_after_a_selection(seed: int) -> None:
    """base[index] restricted to what stays == (base restricted)[gather_index]."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = Var(5), Var(3), Var(4)
    base = concat((product((a, b)), c))
    index = torch.randperm(19, generator=generator)[:11].tolist()
    term = take(base, index, WHY)
    kept = {
        v: torch.randperm(v.size, generator=generator)[: max(v.size - 2, 1)].sort().values
        for v in variables(base)
    }
    values = torch.arange(19)
    whole = values[term_indices(base, kept)]
    assert torch.equal(
        whole[gather_index(base, index, kept)], values[index][term_indices(term, kept)]
    )
    for v in variables(base):
        assert torch.equal(term_labels(term, v), term_labels(base, v)[:, index])


def test_equal_selections_make_their_bases_equal() -> None:
    a, b = Var(10), Var(10)
    unify(indexed(a, SHUFFLED), indexed(b, SHUFFLED), WHY)
    assert resolve(a) is resolve(b)
    assert isinstance(resolve(a), Var)


def test_a_permuted_variable_takes_the_order_of_what_it_meets() -> None:
    a, b, c = Var(10), Var(6), Var(4)
    unify(indexed(a, SHUFFLED), concat((b, c)), WHY)
    kept = {b: torch.tensor([1, 4]), c: torch.tensor([0])}
    assert variables(a) == [b, c]
    assert sorted(SHUFFLED[i] for i in (1, 4, 6)) == term_indices(a, kept).tolist()


def test_other_selections_of_one_base_are_fixed() -> None:
    a, b = Var(4), Var(4)
    base = concat((a, b))
    unify(take(base, [0, 4, 2, 6], WHY), take(base, [4, 1, 5, 2], WHY), WHY)
    assert variables(base) == []


def test_a_permutation_of_blocks_factors() -> None:
    a, b = Var(3), Var(4)
    pair = factor(indexed(product((a, b)), [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]), 3)
    assert pair is not None
    assert isinstance(pair[0], Indexed)
    assert pair[0].base is a
    assert pair[1] is b
    assert factor(indexed(Var(12), [1, 0, *range(2, 12)]), 3) is None
