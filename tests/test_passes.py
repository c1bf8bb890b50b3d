"""Scores, selections and allocations: what is planned, in numbers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import structures as structures  # fills the table
import torch
from nets import captured, floats, module
from torch import Tensor, nn

from prunec.compiler import Graph, Target, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PlanError, TargetError
from prunec.compiler.measure.cost import cost
from prunec.compiler.pass_class import Pass
from prunec.passes import AllocateWidths, MagnitudeScore, PruneChannels, PruneHeads


def after(name: str | Graph, *steps: Pass) -> Compilation:
    state = Compilation(captured(name) if isinstance(name, str) else name)
    for step in (MagnitudeScore(), *steps):
        step.run(state)
    return state


def widths(state: Compilation) -> dict[str, int]:
    """The sizes that dimensions are cut to."""
    return {name: len(kept) for name, kept in state.plan.kept.items()}


# MagnitudeScore


def small() -> Graph:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.up(x).relu())

    net = module(forward, up=nn.Linear(2, 3, bias=False), head=nn.Linear(3, 1))
    with torch.no_grad():
        net.up.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -2.0], [2.0, 0.0]]))
        net.head.weight.copy_(torch.tensor([[-2.0, 0.0, 1.0]]))
    return capture(net, (floats(3, 2),))


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(1, [5.0, 2.0, 3.0]), (2, [3.0, 2.0, 5**0.5])],
)
def test_a_score_is_the_norm_of_all_slices_an_entry_owns(norm: int, expected: list[float]) -> None:
    state = Compilation(small())
    MagnitudeScore(norm=norm).run(state)
    assert state.scores is not None
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(state.scores["up:hidden"], wanted / wanted.mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_do_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    model = small().source.to(dtype)
    state = Compilation(capture(model, (floats(3, 2).to(dtype),)))
    MagnitudeScore(norm=1).run(state)
    assert state.scores is not None
    assert state.scores["up:hidden"].tolist() == pytest.approx([1.5, 0.6, 0.9])


def test_the_score_of_a_head_sums_over_its_width() -> None:
    state = after("qkv_chunked")
    model = captured("qkv_chunked").source
    qkv, bias, head = model.qkv.weight, model.qkv.bias, model.head.weight  # type: ignore[union-attr]
    squares = [
        sum(
            float(t.detach().double().square().sum())
            for part in range(3)
            for rows in [slice(12 * part + 6 * h, 12 * part + 6 * h + 6)]
            for t in (qkv[rows], bias[rows])  # type: ignore[index]
        )
        + float(head[:, 6 * h : 6 * h + 6].detach().double().square().sum())  # type: ignore[index]
        for h in range(2)
    ]
    wanted = torch.tensor(squares, dtype=torch.float64).sqrt()
    assert state.scores is not None
    torch.testing.assert_close(state.scores["qkv:head"], wanted / wanted.mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_any_precision_are_scored(dtype: torch.dtype) -> None:
    model = small().source.to(dtype)
    state = after(capture(model, (floats(3, 2).to(dtype),)))
    assert state.scores is not None
    assert all(scores.dtype == torch.float64 for scores in state.scores.values())


def test_every_score_has_mean_one_and_buffers_do_not_count() -> None:
    state = after("grouped_queries_repeated")
    assert state.scores is not None
    for d in state.graph.prunable.values():
        assert state.scores[d.name].shape == (d.size,)
        assert float(state.scores[d.name].mean()) == pytest.approx(1)
    graph = state.graph
    before = state.scores["q:head-dim"].clone()
    graph.program.tensors["inv_freq"].mul_(3.0)
    again = after(graph).scores
    graph.program.tensors["inv_freq"].div_(3.0)
    assert again is not None
    assert torch.equal(again["q:head-dim"], before)


def test_other_norms_are_refused() -> None:
    with pytest.raises(PlanError, match="norms 1 and 2"):
        MagnitudeScore(norm=3)


# PruneHeads


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 3), (0.3, 3), (0.5, 2), (0.6, 2), (0.99, 1)])
def test_heads_are_rounded_to_the_nearest_number(ratio: float, left: int) -> None:
    assert widths(after("literal_view_sizes", PruneHeads(ratio))) == {"q:head": left}


def test_the_heads_with_the_lowest_scores_go() -> None:
    state = after("literal_view_sizes", PruneHeads(0.5))
    assert state.scores is not None
    scores = state.scores["q:head"]
    kept = state.plan.kept["q:head"]
    gone = [i for i in range(4) if i not in kept]
    assert scores[gone].max() <= scores[kept].min()


def test_whole_groups_go_by_default_and_query_heads_on_request() -> None:
    name = "grouped_queries_repeated"
    assert widths(after(name, PruneHeads(0.5))) == {"q:kv-head": 1}
    assert widths(after(name, PruneHeads(0.34, unit="query-group"))) == {"q:query-group": 2}


def test_a_single_key_head_has_query_heads_to_prune() -> None:
    assert widths(after("one_key_for_all_heads", PruneHeads(0.34))) == {"q:query-group": 2}


def test_heads_are_chosen_by_patterns() -> None:
    name = "talking_heads"
    assert set(widths(after(name, PruneHeads(0.5)))) == {"qkv:head", "qkv:head#2"}
    assert set(widths(after(name, PruneHeads(0.5, include="*#2")))) == {"qkv:head#2"}
    assert set(widths(after(name, PruneHeads(0.5, exclude="*#2")))) == {"qkv:head"}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (PruneHeads(0.1), "removes nothing"),
        (PruneHeads(0.5, include="nothing.*"), "pattern 'nothing.*' fits no prunable dimension"),
        (PruneHeads(), "needs a ratio"),
        (PruneHeads(0.5, exclude="*"), "no attention heads"),
    ],
)
def test_heads_that_cannot_go_are_an_error(step: Pass, said: str) -> None:
    with pytest.raises(PlanError) as error:
        after("literal_view_sizes", step)
    assert said in str(error.value)


def test_a_model_without_heads_has_none_to_prune() -> None:
    state = after("residual", PruneHeads(0.5))
    assert widths(state) == {}


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_a_ratio_is_the_share_removed(ratio: float) -> None:
    for make in (PruneHeads, PruneChannels):
        with pytest.raises(PlanError, match="share removed"):
            make(ratio=ratio)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(PlanError, match="unit"):
        PruneHeads(0.5, unit="head")


# PruneChannels


def test_channels_hidden_and_residual_widths_are_pruned_by_default() -> None:
    assert widths(after("residual", PruneChannels(0.5))) == {
        "stem:residual": 4,
        "first:channel": 3,
    }
    assert widths(after("gpt2_linear", PruneChannels(0.5))) == {
        "stem:residual": 6,
        "up:hidden": 5,
    }


def test_include_replaces_the_default_kinds() -> None:
    state = after("gpt2_linear", PruneChannels(0.5, include="head-dim"))
    assert widths(state) == {"attention:head-dim": 2, "attention:head-dim#2": 2}


def test_include_and_exclude_fit_names_kinds_and_tensors() -> None:
    name = "residual"
    assert set(widths(after(name, PruneChannels(0.5, include="first.weight")))) == {
        "first:channel",
        "stem:residual",
    }
    assert set(widths(after(name, PruneChannels(0.5, exclude="residual")))) == {"first:channel"}
    assert set(widths(after(name, PruneChannels(0.5, exclude=["first:*"])))) == {"stem:residual"}


def test_exact_only_leaves_widths_under_a_norm_alone() -> None:
    assert widths(after("gpt2_linear", PruneChannels(0.5, exact_only=True))) == {"up:hidden": 5}


def test_a_mapping_gives_each_pattern_its_share_and_leaves_others_alone() -> None:
    ratios = {"first:*": 0.5, "channel": 0.9, "residual": 0.25}
    assert widths(after("residual", PruneChannels(ratios))) == {
        "first:channel": 3,
        "stem:residual": 6,
    }
    assert widths(after("residual", PruneChannels({"channel": 0.5}))) == {"first:channel": 3}


@pytest.mark.parametrize(
    ("ratio", "round_to", "left"),
    [
        (0.5, 1, 5),
        (0.5, 4, 4),  # 5 is nearer to 4 than to 8
        (0.4, 4, 8),  # a tie keeps more: 6 lies between 4 and 8
        (0.95, 4, 4),  # never 0
        (0.2, 3, 9),
        (0.95, 1, 1),
    ],
)
def test_widths_are_rounded_to_a_multiple(ratio: float, round_to: int, left: int) -> None:
    state = after("swiglu", PruneChannels(ratio, round_to=round_to))
    assert widths(state) == {"gate:hidden": left}


@pytest.mark.parametrize(("ratio", "round_to"), [(0.5, 16), (0.05, 5)])
def test_rounding_never_goes_above_the_width(ratio: float, round_to: int) -> None:
    """A multiple beyond the width would keep all of it: that removes nothing, and is said."""
    with pytest.raises(PlanError, match="rounds every width to what it was"):
        after("swiglu", PruneChannels(ratio, round_to=round_to))


def test_a_ratio_of_zero_keeps_what_is_no_multiple() -> None:
    assert after("swiglu", PruneChannels(0.0, round_to=8)).plan.kept == {}
    state = after("residual", PruneChannels({"residual": 0.0, "channel": 0.5}, round_to=3))
    assert widths(state) == {"first:channel": 3}


def test_one_factor_of_a_product_is_pruned() -> None:
    """12 channels as 3 groups of 4, 15 as 3 of 5: channels are halved, groups stay."""
    state = after("grouped_convolution", PruneChannels(0.5))
    assert widths(state) == {"stem:channel": 2, "grouped:channel": 3}
    state = after("depthwise_with_multiplier", PruneChannels(0.4))
    assert widths(state) == {"stem:channel": 3}
    state = after("features_repeated_and_tiled", PruneChannels(0.5))
    assert list(widths(state).values()) == [3]


def test_factors_that_are_asked_for_are_all_pruned() -> None:
    everything = ["group", "channel"]
    state = after("grouped_convolution", PruneChannels(0.5, include=everything))
    assert widths(state) == {"stem:group": 2, "stem:channel": 2, "grouped:channel": 3}


def test_a_factor_next_to_a_planned_one_is_left_alone() -> None:
    state = after("gpt2_linear", PruneHeads(0.34))
    with pytest.raises(PlanError, match="no dimension to prune"):
        PruneChannels(0.5, include=None, exclude=["residual", "hidden"]).run(state)
    PruneChannels(0.5).run(state)
    assert set(widths(state)) == {"attention:head", "stem:residual", "up:hidden"}


def test_a_second_pruning_counts_what_is_gone_already() -> None:
    state = after("swiglu", PruneChannels(0.3))
    first = state.plan.kept["gate:hidden"]
    PruneChannels(0.5).run(state)
    second = state.plan.kept["gate:hidden"]
    assert (len(first), len(second)) == (7, 5)
    assert set(second) < set(first)


def uneven() -> Graph:
    """Two hidden widths: in one all weights are alike, in the other half are next to nothing."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())

    net = module(forward, a=nn.Linear(8, 10), b=nn.Linear(10, 8), c=nn.Linear(8, 5))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
        for t in (net.b.weight, net.b.bias, net.c.weight.T):
            t[:6] *= 1e-3
    return capture(net, (floats(3, 8),))


def test_global_ranking_takes_from_where_it_costs_least() -> None:
    graph = uneven()
    assert widths(after(graph, PruneChannels(1 / 3))) == {"a:hidden": 7, "b:hidden": 5}
    assert widths(after(graph, PruneChannels(1 / 3, ranking="global"))) == {"b:hidden": 2}


def test_global_ranking_takes_at_most_the_largest_ratio_of_one() -> None:
    state = after(uneven(), PruneChannels(1 / 3, ranking="global", max_ratio=0.5))
    assert widths(state)["b:hidden"] == 4


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (PruneChannels(0.5, include="nothing"), "pattern 'nothing' fits no prunable dimension"),
        (PruneChannels({"nothing": 0.5}), "pattern 'nothing' fits no prunable dimension"),
        (PruneChannels(0.5, exclude="*"), "no dimension to prune"),
        (PruneChannels(0.5, exclude="frist:*"), "exclude='frist:*' protects nothing"),
        (PruneHeads(0.5, exclude="frist:*"), "exclude='frist:*' protects nothing"),
        (PruneChannels(), "needs a ratio"),
        (PruneChannels(0.01), "removes nothing"),
    ],
)
def test_channels_that_cannot_go_are_an_error(step: Pass, said: str) -> None:
    with pytest.raises(PlanError) as error:
        after("residual", step)
    assert said in str(error.value)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(PlanError, match="round_to"):
        PruneChannels(0.5, round_to=0)
    with pytest.raises(PlanError, match="ranking"):
        PruneChannels(0.5, ranking="best")


# AllocateWidths


def share_left(state: Compilation, kind: str) -> float:
    assert state.widths is not None
    sizes = {state.graph.dimensions[n].var: s for n, s in state.widths.items()}
    return getattr(cost(state.graph, sizes), kind) / getattr(cost(state.graph), kind)  # type: ignore[arg-type]


def test_a_width_target_keeps_that_share_of_every_dimension_but_one_factor_of_each() -> None:
    state = after("gpt2_linear", AllocateWidths(Target(width=0.5)))
    assert state.widths == {"stem:residual": 6, "attention:head": 2, "up:hidden": 5}


@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
@pytest.mark.parametrize("name", ["dense_block", "gpt2_linear"])
def test_a_size_target_is_met_closely(name: str, kind: str) -> None:
    state = after(name, AllocateWidths(Target(**{kind: 0.6})))
    assert 0.45 < share_left(state, kind) <= 0.6


def test_exact_dimensions_go_first_and_others_only_when_they_must() -> None:
    state = after("gpt2_linear", AllocateWidths(Target(params=0.8)))
    assert state.widths is not None
    assert "stem:residual" not in state.widths
    assert not any("norm-coupled" in note for note in state.notes)
    state = after("gpt2_linear", AllocateWidths(Target(params=0.3)))
    assert state.widths is not None
    assert state.widths["stem:residual"] < 12
    assert "norm-coupled" in state.notes[0]


def test_a_target_out_of_reach_names_what_was_reachable() -> None:
    with pytest.raises(TargetError, match=r"params=0\.001 cannot be met.*reaches params=0\.\d+"):
        after("gpt2_linear", AllocateWidths(Target(params=0.001)))
    with pytest.raises(TargetError, match=r"macs=0\.3 cannot be met"):
        after("gpt2_linear", AllocateWidths(Target(macs=0.3), exact_only=True))


def test_a_model_without_prunable_dimensions_meets_no_target() -> None:
    with pytest.raises(TargetError, match="no dimension can be pruned"):
        after("misaligned_views", AllocateWidths(Target(params=0.5)))


def test_a_target_that_rounds_to_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        after("swiglu", AllocateWidths(Target(width=0.99)))


def test_allocated_widths_are_what_the_pruning_passes_plan() -> None:
    state = after("gpt2_linear", AllocateWidths(Target(width=0.5)), PruneHeads(), PruneChannels())
    assert widths(state) == state.widths
    state = after("swiglu", AllocateWidths(Target(width=0.5), round_to=4), PruneHeads())
    assert state.plan.kept == {}
    PruneChannels().run(state)
    assert widths(state) == {"gate:hidden": 4}


@pytest.mark.parametrize("step", [PruneHeads(0.5), PruneChannels(0.5)])
def test_a_ratio_after_an_allocation_is_an_error(step: Pass) -> None:
    with pytest.raises(PlanError, match="although widths are allocated"):
        after("gpt2_linear", AllocateWidths(Target(width=0.5)), step)


def test_excluded_dimensions_are_not_allocated() -> None:
    step = AllocateWidths(Target(width=0.5), exclude=["residual", "head*"])
    assert after("gpt2_linear", step).widths == {"up:hidden": 5}
