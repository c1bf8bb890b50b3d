"""The knapsack finds the optimum of costs that are known, and never spends more than it may."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.cost_model.parts import CostModel, Part
from prunec.compiler.inference.dimensions import Dimension
from prunec.compiler.ir.terms import Var
from prunec.passes.allocation.choice import Choice
from prunec.passes.allocation.knapsack import Item, knapsack
from prunec.passes.allocation.lattice import Lattice
from prunec.passes.allocation.search import least_loss

Sizes = Mapping[Var, int]


def brute_force(items: list[Item], budget: float) -> float | None:
    options = itertools.product(*(range(len(item.costs)) for item in items))
    possible = [
        sum(i.losses[o] for i, o in zip(items, taken, strict=True))
        for taken in options
        if sum(i.costs[o] for i, o in zip(items, taken, strict=True)) <= budget
    ]
    return min(possible, default=None)


def test_the_optimum_that_one_share_for_all_would_miss() -> None:
    # Cutting the first to its least costs no quality and frees 8 of 10: the second may stay whole.
    cheap = Item(np.array([0.0, 0.0, 0.0]), np.array([1.0, 4.0, 9.0]))
    dear = Item(np.array([5.0, 1.0, 0.0]), np.array([1.0, 4.0, 9.0]))
    assert knapsack([cheap, dear], 10.0) == [0, 2]
    assert knapsack([cheap, dear], 9.9) == [0, 1]
    assert knapsack([cheap, dear], 2.0) == [0, 0]
    assert knapsack([cheap, dear], 1.9) is None


OPTION = st.tuples(st.integers(0, 30), st.integers(-5, 40))


def item(options: list[tuple[int, int]]) -> Item:
    losses, costs = np.array(options, dtype=np.float64).T
    return Item(losses, costs)


ITEM = st.lists(OPTION, min_size=1, max_size=4).map(item)


@settings(max_examples=150, deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=4), st.integers(-20, 120))
def test_integer_costs_are_solved_exactly(items: list[Item], budget: int) -> None:
    slack = round(budget - sum(item.costs.min() for item in items))
    taken = knapsack(items, budget, buckets=max(slack, 1))
    best = brute_force(items, budget)
    if best is None:
        assert taken is None
        return
    assert taken is not None
    pairs = list(zip(items, taken, strict=True))
    assert sum(i.costs[o] for i, o in pairs) <= budget
    assert sum(i.losses[o] for i, o in pairs) == pytest.approx(best)


def chain(widths: tuple[int, ...], weights: list[float]) -> tuple[Lattice, list[Var]]:
    """Layers in a row: the cost of each is the product of the widths on its sides."""
    variables = [Var(widths[-1]) for _ in weights]
    names = [f"d{i}" for i in range(len(weights))]
    choices = [
        Choice(
            (Dimension(name, "channel", v.size, (), var=v),),
            widths,
            weight * (1 - np.array(widths) / widths[-1]) ** 2,
        )
        for name, v, weight in zip(names, variables, weights, strict=True)
    ]

    def price(a: Var, b: Var) -> Part:
        return Part((a, b), (lambda s: float(s.get(a, a.size) * s.get(b, b.size)),))

    pairs = itertools.pairwise(variables)
    return Lattice(choices, CostModel(tuple(price(a, b) for a, b in pairs), 5.0, "ms")), variables


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.8])
def test_interacting_widths_come_close_to_the_optimum_within_the_budget(share: float) -> None:
    lattice, _ = chain((1, 2, 4, 6, 8), [1.0, 8.0, 0.1, 4.0, 1.0])
    assert not lattice.separable
    budget = share * lattice.cost(lattice.top)
    found = least_loss(lattice, budget)
    assert found is not None
    assert lattice.cost(found) <= budget
    every = itertools.product(*(range(len(c.widths)) for c in lattice.choices))
    best = min(lattice.loss(at) for at in every if lattice.cost(at) <= budget)
    assert best <= lattice.loss(found) <= best * 1.15 + 1e-9


def test_a_budget_below_the_floor_has_no_solution() -> None:
    lattice, _ = chain((2, 4, 8), [1.0, 1.0, 1.0])
    assert lattice.cost(lattice.bottom) == 5 + 2 * 4
    assert least_loss(lattice, 12.9) is None
    assert least_loss(lattice, 13.0) == lattice.bottom


def test_costs_that_add_up_are_solved_exactly() -> None:
    a, b = Var(8), Var(8)
    widths = (1, 4, 8)

    def alone(v: Var, each: float) -> Part:
        return Part((v,), (lambda s: each * s.get(v, v.size),))

    choices = [
        Choice((Dimension("a", "hidden", 8, (), var=a),), widths, np.array([9.0, 1.0, 0.0])),
        Choice((Dimension("b", "hidden", 8, (), var=b),), widths, np.array([2.0, 1.5, 0.0])),
    ]
    lattice = Lattice(choices, CostModel((alone(a, 1.0), alone(b, 3.0)), 1.0, "ms"))
    assert lattice.separable
    found = least_loss(lattice, 12.0)  # 1 + 8 + 3
    assert found == (2, 0)
    assert lattice.allocation(found).widths == {"a": 8, "b": 1}
    assert lattice.cost(found) == 12.0
