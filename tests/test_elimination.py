"""Elimination against the mathematics: every removal is a least-squares problem of its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from prunec.passes.sensitivity.elimination import Problem, eliminate
from prunec.passes.sensitivity.readings import entry_columns

NOTHING = 1e-13  # a ridge that is no more than rounding


def problem(rows: Tensor, weight: Tensor, inputs: Tensor, outputs: Tensor | None = None) -> Problem:
    x = rows - rows.mean(0)
    gram = x.T @ x / len(x)
    energy = (weight * (gram @ weight)).sum()
    none = torch.full((weight.shape[1],), -1)
    return Problem(gram, weight / energy.sqrt(), inputs, none if outputs is None else outputs)


def least_error(rows: Tensor, weight: Tensor, kept: Tensor) -> float:
    """Relative squared error of the best weights and bias on the kept columns, by torch."""
    x = rows - rows.mean(0)
    target = x @ weight
    found = torch.linalg.lstsq(x[:, kept], target).solution
    return float((target - x[:, kept] @ found).square().sum() / target.square().sum())


def correlated(seed: int, n: int = 200, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64
    )


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@pytest.mark.parametrize("step", [1, 3])
def test_every_error_is_that_of_least_squares(step: int) -> None:
    rows, weight = correlated(0), weights(0, 8, 5)
    order, errors = eliminate([problem(rows, weight, torch.arange(8))], zeros(8), NOTHING, step)
    assert len(order) == 7
    for gone, error in enumerate(errors, start=1):
        kept = torch.tensor(sorted(set(range(8)) - set(order[:gone])))
        assert error == pytest.approx(least_error(rows, weight, kept), rel=1e-5)


def test_one_at_a_time_the_cheapest_goes() -> None:
    rows, weight = correlated(1), weights(1, 8, 3)
    order, _ = eliminate([problem(rows, weight, torch.arange(8))], zeros(8), NOTHING, 1)
    left = set(range(8))
    for entry in order:
        costs = {e: least_error(rows, weight, torch.tensor(sorted(left - {e}))) for e in left}
        assert entry == min(costs, key=costs.__getitem__)
        left.remove(entry)


def test_entries_of_several_columns() -> None:
    rows, weight = correlated(2, width=12), weights(2, 12, 4)
    owners = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, -1, -1])  # of 3, 3, 2, 2 and none
    order, errors = eliminate([problem(rows, weight, owners)], zeros(4), NOTHING, 1)
    for gone, error in enumerate(errors, start=1):
        lost = torch.isin(owners, torch.tensor(order[:gone]))
        kept = (~lost).nonzero().reshape(-1)
        assert error == pytest.approx(least_error(rows, weight, kept), rel=1e-5)


def test_the_errors_of_several_layers_are_summed() -> None:
    rows, others = correlated(3), correlated(4)
    w, v = weights(3, 8, 5), weights(4, 8, 2)
    own = torch.arange(8)
    order, errors = eliminate(
        [problem(rows, w, own), problem(others, v, own.flip(0))], zeros(8), NOTHING, 2
    )
    kept = torch.tensor(sorted(set(range(8)) - set(order[:4])))
    expected = least_error(rows, w, kept) + least_error(others, v, 7 - kept)
    assert errors[3] == pytest.approx(expected, rel=1e-5)


def test_of_two_equal_entries_one_is_free_and_the_other_is_not() -> None:
    rows = correlated(5)
    rows[:, 4], rows[:, 7] = 3 * rows[:, 1], rows[:, 2] - 2 * rows[:, 3]
    order, errors = eliminate([problem(rows, weights(5, 8, 5), torch.arange(8))], zeros(8), 1e-2, 4)
    assert errors[1] < 1e-10
    assert errors[2] > 1e-4
    first = set(order[:2])
    assert len(first & {1, 4}) == 1
    assert len(first & {2, 3, 7}) == 1


def test_what_is_made_for_an_entry_that_is_gone_does_not_count() -> None:
    """A square layer whose outputs belong to the same entries as its inputs."""
    rows = torch.eye(4, dtype=torch.float64).repeat(50, 1) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = rows + 0.01 * correlated(6, 200, 4)
    weight = torch.zeros(4, 4, dtype=torch.float64)
    weight[0, 0] = weight[1, 1] = weight[2, 3] = weight[3, 2] = 1.0
    own = torch.arange(4)
    counted = eliminate([problem(rows, weight, own)], zeros(4), NOTHING, 1)[1]
    spared = eliminate([problem(rows, weight, own, own)], zeros(4), NOTHING, 1)[1]
    assert spared[-1] < counted[-1]


def test_a_fixed_cost_is_added() -> None:
    rows, weight = correlated(7), weights(7, 8, 5)
    fixed = zeros(8)
    fixed[3] = 100.0
    order, errors = eliminate([problem(rows, weight, torch.arange(8))], fixed, NOTHING, 4)
    assert 3 not in order
    assert errors[-1] < 100
    order, errors = eliminate([], torch.tensor([3.0, 1.0, 2.0]), 1e-2, 2)
    assert (order, errors) == ([1, 2], [1.0, 3.0])


def test_inputs_that_never_move_go_first() -> None:
    rows = correlated(8)
    rows[:, [0, 5]] = 7.0
    order, errors = eliminate([problem(rows, weights(8, 8, 5), torch.arange(8))], zeros(8), 1e-2, 1)
    assert set(order[:2]) == {0, 5}
    assert errors[1] < 1e-9


def test_the_order_is_close_to_the_best_choice() -> None:
    """Greedy is not optimal; on small cases it is near, and never far."""
    rows, weight = correlated(9), weights(9, 8, 5)
    _, errors = eliminate([problem(rows, weight, torch.arange(8))], zeros(8), NOTHING, 1)
    choices = (torch.tensor(kept) for kept in itertools.combinations(range(8), 4))
    best = min(least_error(rows, weight, kept) for kept in choices)
    assert best <= errors[3] * (1 + 1e-6)
    assert errors[3] < 2 * best


def test_the_columns_of_entries() -> None:
    owners = torch.tensor([2, -1, 0, 2, 0, 1])
    assert entry_columns(owners, 4).tolist() == [[2, 4], [5, -1], [0, 3], [-1, -1]]
