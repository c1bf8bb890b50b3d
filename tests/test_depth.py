"""Branches among the widths of an allocation: found, weighed, dropped, counted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_allocation import deep_bert
from tiny_models import IDS, comparison, parameters, tiny_llama
from torch import nn

from prunec import compiler, passes
from prunec.compiler import Graph, Target
from prunec.compiler.compilation import Compilation
from prunec.compiler.cost_model.counted import counted
from prunec.compiler.cost_model.parts import CostModel, Part
from prunec.compiler.errors import PlanError, TargetError
from prunec.compiler.inference.branches import find_branches
from prunec.compiler.inference.dimensions import Dimension
from prunec.compiler.inference.nesting import Nesting
from prunec.compiler.ir.terms import Var
from prunec.compiler.measure.cost import cost
from prunec.passes.allocation.choice import Choice
from prunec.passes.allocation.depth import find_depth
from prunec.passes.allocation.lattice import Lattice
from prunec.passes.allocation.search import least_loss

LAYER = "bert.encoder.layer.{}"


@pytest.fixture(scope="module")
def graph() -> Graph:
    """A BERT of three layers of which the attention of the second does nothing."""
    model = deep_bert()
    with torch.no_grad():
        for p in model.get_submodule(f"{LAYER.format(1)}.attention.output.dense").parameters():
            p.mul_(1e-3)
    return compiler.capture(model, kwargs={"input_ids": IDS})


def batches() -> list[dict[str, Any]]:
    return [{"input_ids": torch.randint(99, (4, 7))} for _ in range(3)]


def test_branches_lie_in_their_blocks(graph: Graph) -> None:
    found = find_branches(graph)
    nesting = Nesting(found)
    blocks = [b.name for b in found if "branch" not in b.units]
    assert len(blocks) == 3
    inner = [b for b in nesting.branches if nesting.around[b] == (blocks[1],)]
    assert len(inner) == 2
    assert all(name.startswith(LAYER.format(1)) for name in inner)
    assert nesting.closed([blocks[1]]) == {blocks[1], *inner}
    assert nesting.outermost([inner[0], blocks[1], inner[1]]) == [blocks[1]]
    hidden = f"{LAYER.format(1)}.intermediate.dense.weight"
    own = nesting.of_tensors([hidden])
    assert own in inner
    assert nesting.chain(own) == (own, blocks[1])
    norm = f"{LAYER.format(1)}.output.LayerNorm.weight"  # behind the sum: only the block takes it
    assert nesting.of_tensors([norm]) == blocks[1]
    assert nesting.of_tensors([hidden, norm]) == blocks[1]
    assert nesting.of_tensors([hidden, "classifier.weight"]) == ""


@pytest.mark.parametrize("unit", ["params", "bytes", "macs"])
def test_counts_without_branches_are_those_of_the_graph_without_them(
    graph: Graph, unit: str
) -> None:
    state = Compilation(graph)
    depth = find_depth(state, 0.9)
    chosen = {d.var: max(1, d.size // 2) for d in graph.prunable.values() if d.var is not None}
    model = counted(graph, unit, chosen, depth.nesting)
    batch = 2 if unit == "macs" else 1
    for dropped in [(), depth.names[:1], depth.names[1:3], depth.names]:
        left = depth.without(graph, dropped)
        by_name = {v: n for n, d in graph.dimensions.items() if (v := d.var) is not None}
        halves = {by_name[v]: size for v, size in chosen.items()}
        sizes: dict[Any, int] = {
            d.var: halves.get(d.name, d.size) for d in left.prunable.values() if d.var is not None
        }
        total = model.total(chosen, depth.nesting.closed(dropped))
        assert total // batch == getattr(cost(left, sizes), unit)


def layered(
    losses: list[list[float]], gone: list[float], outer: float, prices: list[int]
) -> Lattice:
    """A stream and three branches beside it with a width each; the last two in a block."""
    stream = Var(4)
    names = ["a", "b", "c"]
    variables = [Var(4) for _ in names]

    def choice(name: str, var: Var, own: list[float], within: str) -> Choice:
        curve = np.sort(np.array([*own, 0.0]))[::-1]
        return Choice((Dimension(name, "hidden", 4, (), var=var),), (1, 2, 4), curve, within=within)

    choices = [choice("stream", stream, losses[0], "")]
    choices += [
        choice(n, v, own, f"branch {n}")
        for n, v, own in zip(names, variables, losses[1:], strict=True)
    ]
    choices += [
        Choice((), (0, 1), np.array([g, 0.0]), f"branch {n}", "" if n == "a" else "block")
        for n, g in zip(names, gone, strict=True)
    ]
    choices.append(Choice((), (0, 1), np.array([outer, 0.0]), "block"))

    def price(v: Var, each: int) -> Any:
        def found(sizes: Mapping[Var, int]) -> float:
            return float(each * sizes.get(v, 4) * sizes.get(stream, 4))

        return found

    parts = [
        Part((v, stream), (price(v, each),), f"branch {n}")
        for v, n, each in zip(variables, names, prices, strict=True)
    ]
    parts.append(Part((), (lambda sizes: 3.0,), "block"))
    return Lattice(choices, CostModel(tuple(parts), 2.0, "ms"))


SMALL = st.floats(0, 9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SMALL, min_size=2, max_size=2), min_size=4, max_size=4),
    st.lists(SMALL, min_size=3, max_size=3),
    SMALL,
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.floats(0.05, 1),
)
def test_the_search_is_near_the_best_of_all_points_and_never_over_the_budget(
    losses: list[list[float]], gone: list[float], outer: float, prices: list[int], share: float
) -> None:
    lattice = layered(losses, gone, outer, prices)
    budget = share * lattice.cost(lattice.top)
    found = least_loss(lattice, budget)
    every = itertools.product(*(range(len(c.widths)) for c in lattice.choices))
    possible = [lattice.loss(at) for at in every if lattice.cost(at) <= budget]
    if found is None:
        assert not possible
        return
    assert lattice.cost(found) <= budget
    assert lattice.loss(found) <= 1.5 * min(possible) + 1.0


def test_a_dropped_branch_costs_nothing_and_its_widths_lose_nothing() -> None:
    lattice = layered([[20, 20], [9, 9], [9, 9], [9, 9]], [1.0, 8.0, 8.0], 2.0, [1, 1, 1])
    assert lattice.cost(lattice.bottom) == 2.0
    assert lattice.loss(lattice.bottom) == 23.0  # the stream, branch a and the block
    found = least_loss(lattice, 2.0 + 16.0)
    assert found is not None
    assert lattice.allocation(found).dropped == ("block",)
    assert lattice.loss(found) == 2.0
    assert lattice.allocation(found).widths == {"stream": 4, "a": 4, "b": 4, "c": 4}


def compiled(graph: Graph, target: Target, **options: Any) -> compiler.Result:
    steps = [
        passes.SecondOrderScore(progress=False),
        passes.AllocateWidths(target, **options),
        passes.PruneHeads(),
        passes.PruneChannels(),
        passes.SparseToDense(),
    ]
    return compiler.PassManager(steps).run(graph, batches())


def test_the_branch_without_effect_goes_before_widths(graph: Graph) -> None:
    torch.manual_seed(0)
    result = compiled(graph, Target(macs=0.85), depth=0.5, exact_only=True)
    assert [b.name for b in result.report.branches if b.state == "dropped"] == [
        f"{LAYER.format(1)}.attention"
    ]
    assert result.report.after.macs <= 0.85 * result.report.before.macs
    assert type(result.model) is type(graph.source)
    assert result.verify().passed
    kept = [b for b in result.report.branches if b.state == "kept"]
    assert kept and all(b.error is not None for b in kept)  # noqa: PT018
    without = compiled(graph, Target(macs=0.85), exact_only=True)
    assert not without.report.branches


@pytest.mark.slow
def test_means_that_take_a_bias_of_their_own_count_towards_the_target() -> None:
    torch.manual_seed(0)
    model = tiny_llama(num_hidden_layers=4)
    ids = [{"input_ids": torch.randint(99, (4, 7))} for _ in range(3)]
    graph = compiler.capture(model, kwargs=ids[0])
    steps = [
        passes.SecondOrderScore(progress=False),
        passes.AllocateWidths(Target(params=0.7), depth=0.6, exact_only=True),
        passes.PruneHeads(),
        passes.PruneChannels(),
        passes.SparseToDense(),
    ]
    report = compiler.PassManager(steps).run(graph, ids).report
    assert any(b.reason == "its mean" for b in report.branches)
    assert report.after.params <= 0.7 * report.before.params
    assert report.aim is not None
    assert report.aim.predicted == pytest.approx(report.after.params / report.before.params)


def test_exclude_and_the_share_bound_what_may_go(graph: Graph) -> None:
    state = Compilation(graph)
    every = find_depth(state, 0.99)
    assert sum("branch" in b.units for b in every.nesting.branches.values()) == 5
    few = find_depth(state, 0.34)
    assert sum("branch" in b.units for b in few.nesting.branches.values()) == 2
    kept = find_depth(state, 0.99, exclude=["*layer.1*"])
    assert not [name for name in kept.names if "layer.1" in name]
    blocks = find_depth(state, 0.67, blocks=True)
    assert len(blocks.names) == 2
    assert all("block" in b.units for b in blocks.nesting.branches.values())


def test_repeated_layers_stay_equal_when_blocks_go(graph: Graph) -> None:
    result = compiled(graph, Target(macs=0.5), depth=0.5, uniform=True, exact_only=True)
    layers = result.model.bert.encoder.layer  # type: ignore[union-attr]
    assert result.model.config.num_hidden_layers == len(layers)  # type: ignore[union-attr]
    assert len({layer.intermediate.dense.out_features for layer in layers}) == 1


def test_heads_planned_before_a_branch_goes_are_still_planned(graph: Graph) -> None:
    # heads and head widths share an axis of the weights, and were taken for one another
    state = Compilation(graph)
    heads = [d.name for d in graph.prunable.values() if d.kind == "head"]
    for name in heads:
        state.plan.remove(name, torch.tensor([1, 2]))
    depth = find_depth(state, 0.5)
    first = next(n for n in depth.names if n.endswith("attention"))
    depth.drop(state, [first])
    assert state.plan.kept == {name: [0, 3] for name in heads if not name.startswith(first)}


@pytest.mark.usefixtures("fake_timing")
def test_a_speed_that_widths_do_not_give_is_reached_by_depth(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch_bound(before: nn.Module, after: nn.Module, *_: Any, **__: Any) -> Any:
        layers = [
            sum(isinstance(m, nn.Linear) for m in model.modules()) for model in (before, after)
        ]
        share = 0.9 * layers[1] / layers[0] + 0.1 * parameters(after) / parameters(before)
        return comparison(1 / share)

    monkeypatch.setattr("prunec.passes.allocation.candidate.compare_modules", launch_bound)
    with pytest.raises(TargetError, match="cannot be met"):
        compiled(graph, Target(speedup=1.25))
    result = compiled(graph, Target(speedup=1.25), depth=0.5)
    aim = result.report.aim
    assert aim is not None
    assert (aim.measured or 0) >= 1.25 * 0.97
    assert any(b.state == "dropped" for b in result.report.branches)


def test_depth_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(PlanError, match="share that may go"):
        passes.AllocateWidths(Target(macs=0.5), depth=1.0)
    for target, method in ((Target(width=0.5), "auto"), (Target(macs=0.5), "share")):
        with pytest.raises(PlanError, match="DropLayers before the scores"):
            passes.AllocateWidths(target, method=method, depth=0.5)
