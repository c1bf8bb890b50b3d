"""Rounds: a target reached in steps, each from the weights of the last, proven on the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_allocation import deep_bert
from test_attention_scale import DefaultScale
from tiny_models import IDS, IMAGES, parameters, small_cnn, tiny_bert, tiny_llama
from torch import nn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PlanError
from prunec.compiler.rounds import GONE, continue_from, round_targets, sizes_left, take_scores
from prunec.compiler.weights import at_full_size, cut_into
from prunec.passes.allocation.choice import loss_curve
from prunec.passes.distillation.losses import DistillError


def images() -> list[torch.Tensor]:
    return [torch.randn(8, 3, 8, 8) for _ in range(6)]


def tokens() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.randint(99, (4, 7))} for _ in range(6)]


def halve(graph: compiler.Graph, start: Any = None, ratio: float = 0.5, last: Any = ()) -> Any:
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=ratio, exact_only=True)]
    return compiler.PassManager([*steps, passes.SparseToDense(), *last]).run(graph, start=start)


def test_targets_on_the_way_are_equal_factors() -> None:
    values = [t.value for t in round_targets(Target(params=0.125), 3)]
    assert values == pytest.approx([0.5, 0.25, 0.125])
    speeds = round_targets(Target(speedup=4.0, runtime="compile", batch=7), 2)
    assert [t.value for t in speeds] == pytest.approx([2.0, 4.0])
    assert {(t.runtime, t.batch) for t in speeds} == {("compile", 7)}
    times = round_targets(Target(latency_ms=2.0), 2, original_ms=8.0)
    assert [t.value for t in times] == pytest.approx([4.0, 2.0])
    for target, rounds in ((Target(error=1e-3), 2), (Target(params=0.5), 0)):
        with pytest.raises(PlanError):
            round_targets(target, rounds)


@pytest.mark.parametrize("build", [small_cnn, tiny_bert, tiny_llama])
def test_a_second_round_removes_more_and_keeps_the_weights(build: Any) -> None:
    model = build()
    example = {"input_ids": IDS} if build is not small_cnn else {"x": IMAGES}
    graph = compiler.capture(model, kwargs=example)
    first = halve(graph)
    with torch.no_grad():
        for p in first.model.parameters():  # as if it had been trained
            p.mul_(1.1).add_(0.01)
    trained = {n: t.clone() for n, t in first.model.state_dict().items()}
    second = halve(graph, start=first, ratio=0.75)
    assert type(second.model) is type(model)
    assert parameters(second.model) < parameters(first.model)
    assert second.verify().passed
    for name, kept in second.plan.kept.items():
        assert set(kept) <= set(first.plan.kept[name])
        assert len(kept) < len(first.plan.kept[name])
    before, after = first.plan.slices(), second.plan.slices()
    for name, tensor in second.model.state_dict().items():
        wanted = trained[name]
        for axis, kept in after.get(name, {}).items():
            places = torch.searchsorted(before[name][axis], kept)
            wanted = wanted.index_select(axis, places)
        assert torch.allclose(tensor, wanted, rtol=1e-5, atol=1e-6), name
    assert all(torch.equal(a, b) for a, b in zip(
        first.model.state_dict().values(), trained.values(), strict=True
    ))  # fmt: skip


def test_a_share_that_was_reached_before_removes_nothing_and_says_so() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = halve(graph)
    with pytest.raises(PlanError, match="removes nothing"):
        halve(graph, start=first)
    target = passes.AllocateWidths(Target(width=0.5))
    steps = [passes.MagnitudeScore(), target, passes.PruneChannels(), passes.SparseToDense()]
    again = compiler.PassManager(steps).run(graph, start=first)
    assert again.plan.kept == first.plan.kept
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(first.model(x), again.model(x), atol=1e-6)


def test_scores_of_a_round_are_those_of_the_model_it_starts_from() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = halve(graph)
    with torch.no_grad():
        first.model.second.weight[3] *= 1e-3  # the next entry to go, by what training made of it
    place = first.plan.kept["second:channel"][3]
    second = halve(graph, start=first, ratio=14 / 24)
    assert place not in second.plan.kept["second:channel"]
    scored = [p for p in second.report.passes if p.name == "magnitude-score"]
    assert len(scored) == 2
    assert scored[1].summary.startswith("round 2: ")


@pytest.mark.parametrize("target", [Target(params=0.3), Target(macs=0.3)])
def test_compile_in_rounds_meets_the_target(target: Target) -> None:
    data = images()
    options = {"distill": {"steps": 2, "progress": False, "learning_rate": 1e-3}}
    result = compiler.compile(
        small_cnn(), (IMAGES,), target=target, rounds=3, calibration=data, train=data,
        measure=False, options=options,
    )  # fmt: skip
    report = result.report
    after, before = getattr(report.after, target.kind), getattr(report.before, target.kind)
    assert after <= before * target.value
    assert report.target == str(target)
    names = [p.name for p in report.passes]
    assert [names.count(n) for n in ("second-order-score", "reconstruct", "distill")] == [3, 3, 3]
    assert result.verify().passed


@pytest.mark.slow
def test_norm_coupled_widths_and_depth_go_in_rounds() -> None:
    data = tokens()
    result = compiler.compile(
        deep_bert(), kwargs={"input_ids": IDS}, target=Target(params=0.25), rounds=2,
        calibration=data, train=data, measure=False,
        options={
            "distill": {"steps": 2, "progress": False},
            "allocate-widths": {"depth": 0.5},
        },
    )  # fmt: skip
    assert result.report.after.params <= 0.25 * result.report.before.params
    assert result.model.classifier.in_features < 32  # type: ignore[union-attr]
    assert result.verify().passed
    assert sum(b.state == "dropped" and b.unit == "branch" for b in result.report.branches) <= 3


def test_drop_layers_takes_part_in_the_first_round_only(recipe: Any) -> None:
    path = recipe(
        '[[pass]]\nuse = "drop-layers"\ncount = 1\n[[pass]]\nuse = "magnitude-score"\n'
        '[[pass]]\nuse = "allocate-widths"\n[[pass]]\nuse = "prune-heads"\n'
        '[[pass]]\nuse = "prune-channels"\n[[pass]]\nuse = "sparse-to-dense"\n'
    )
    result = compiler.compile(
        deep_bert(), kwargs={"input_ids": IDS}, target=Target(macs=0.4), rounds=2, recipe=path,
        measure=False,
    )  # fmt: skip
    assert [p.name for p in result.report.passes].count("drop-layers") == 1
    assert len(result.model.bert.encoder.layer) == 2  # type: ignore[union-attr]
    fixed = recipe(
        '[[pass]]\nuse = "magnitude-score"\n[[pass]]\nuse = "prune-channels"\nratio = 0.5\n'
        '[[pass]]\nuse = "sparse-to-dense"\n'
    )
    with pytest.raises(PlanError, match="no pass of the recipe takes it"):
        compiler.compile(small_cnn(), IMAGES, target=Target(macs=0.4), rounds=2, recipe=fixed)


def test_weights_come_back_from_full_size_as_they_were() -> None:
    graph = compiler.capture(DefaultScale().eval(), (torch.randn(2, 6, 10),))
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5, include="head-dim")]
    result = compiler.PassManager([*steps, passes.SparseToDense()]).run(graph)
    state = result.state
    assert state.plan.scales  # the attention's scale went into a weight
    assert state.dense is not None
    before = {n: t.detach().clone() for n, t in state.dense.program.tensors.items()}
    full = at_full_size(state)
    assert {n: t.shape for n, t in full.items()} == {
        n: graph.program.tensors[n].shape for n in full
    }
    assert cut_into(state, full) == [n for n in before if n not in full]
    for name in full:
        assert torch.allclose(state.dense.program.tensors[name], before[name], atol=1e-6)


def test_what_a_round_cannot_continue_is_refused() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = halve(graph)
    assert sizes_left(first.state) == {n: d.size for n, d in graph.prunable.items()}
    with pytest.raises(PlanError, match="capture the model once"):
        halve(compiler.capture(small_cnn(), (IMAGES,)), start=first)
    masked = compiler.PassManager([passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5)])
    with pytest.raises(PlanError, match="no SparseToDense"):
        halve(graph, start=masked.run(graph))
    sparse = [passes.SparsifyWeights(0.5), passes.SparseToDense()]
    with pytest.raises(PlanError, match="SparsifyWeights"):
        halve(graph, start=compiler.PassManager(sparse).run(graph))
    grown = passes.Distill(images(), steps=4, gradual=0.5, progress=False)
    with pytest.raises(DistillError, match="an earlier round"):
        halve(graph, start=first, ratio=0.75, last=[grown])


def test_removed_entries_weigh_nothing_and_go_first() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = halve(graph, ratio=0.25)
    second = halve(graph, start=first, ratio=0.5)
    scores, kept = second.state.scores, first.plan.kept
    assert scores is not None
    for name, stay in kept.items():
        gone = [i for i in range(len(scores[name])) if i not in stay]
        assert (scores[name][gone] == GONE).all()
        assert (scores[name][stay] > GONE).all()
        curve = loss_curve(graph.dimensions[name], scores[name], None)
        assert curve[len(stay)] < 1e-12 < curve[len(stay) - 1]


class NoBiases(nn.Module):
    """Two linear layers without biases behind each other, beside a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 24, bias=False)
        self.second = nn.Linear(24, 16, bias=False)
        self.third = nn.Linear(16, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def test_biases_that_a_repair_added_go_on() -> None:
    torch.manual_seed(0)
    x = [torch.randn(64, 6) for _ in range(4)]
    graph = compiler.capture(NoBiases().eval(), (x[0],))
    repair = passes.Reconstruct(x)
    first = halve(graph, last=[repair])
    assert first.report.passes[-1].details["biases added"] == ["second.bias", "third.bias"]
    second = halve(graph, start=first, ratio=0.75)
    bias = first.model.second.bias.detach()  # type: ignore[union-attr]
    stay = [first.plan.kept["second:hidden"].index(i) for i in second.plan.kept["second:hidden"]]
    assert torch.equal(second.model.second.bias, bias[stay])  # type: ignore[union-attr]
    assert torch.equal(second.model.third.bias, first.model.third.bias)  # type: ignore[union-attr]
    tight = Compilation(graph)
    continue_from(tight, first.state)
    tight.room = "params", 5.0  # enough for one of the two
    tight.scores = second.state.scores
    tight.plan.kept = dict(second.plan.kept)
    passes.SparseToDense().run(tight)
    assert tight.dense is not None
    assert [n for n in tight.dense.program.tensors if n.endswith("bias")] == ["second.bias"]
    assert any("1 biases of an earlier round" in note for note in tight.notes)


@pytest.mark.slow
def test_the_mean_of_a_branch_that_a_later_round_drops_is_kept() -> None:
    model = deep_bert()
    graph = compiler.capture(model, kwargs={"input_ids": IDS})
    data = tokens()
    drop = passes.DropLayers(count=1, unit="branch")
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5, exact_only=True)]
    first = compiler.PassManager([*steps, passes.SparseToDense()]).run(graph, data)
    steps[1] = passes.PruneChannels(ratio=0.75, exact_only=True)
    second = compiler.PassManager([drop, *steps, passes.SparseToDense()]).run(
        graph, data, start=first
    )
    assert any(b.reason == "its mean" for b in second.report.branches)
    state = second.state
    assert state.dense is not None
    original, held = graph.program.tensors, state.plan.constants
    moved = [n for n in held if n in original and held[n].shape == original[n].shape]
    assert [n for n in moved if not torch.allclose(held[n], original[n])]
    for name in moved:  # nothing was trained: what is there is the original's, and the mean
        assert torch.allclose(state.dense.program.tensors[name], held[name], atol=1e-6), name
    for parameter in second.model.parameters():
        parameter.data += 0.5  # as if it had been trained
    steps[1] = passes.PruneChannels(ratio=0.8, exact_only=True)
    third = compiler.PassManager([*steps, passes.SparseToDense()]).run(graph, data, start=second)
    assert third.state.dense is not None
    for name in moved:
        found = third.state.dense.program.tensors[name]
        assert torch.allclose(found, held[name] + 0.5, atol=1e-6), name


def test_what_has_no_score_in_the_smaller_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    first = halve(graph, ratio=0.25)
    found = take_scores.__globals__["same_dimensions"]
    unknown = "second:channel"

    def forgotten(*args: Any) -> Any:
        return {**found(*args), unknown: []}

    monkeypatch.setitem(take_scores.__globals__, "same_dimensions", forgotten)
    second = halve(graph, start=first, ratio=0.5)
    assert second.plan.kept[unknown] == first.plan.kept[unknown]
    assert any(f"'{unknown}' has no score" in note for note in second.report.notes)
    target = passes.AllocateWidths(Target(width=0.5))
    steps = [passes.MagnitudeScore(), target, passes.PruneChannels(), passes.SparseToDense()]
    third = compiler.PassManager(steps).run(graph, start=first)
    assert third.plan.kept[unknown] == first.plan.kept[unknown]


def test_single_zeros_wait_for_the_last_round_and_gradual_is_refused(recipe: Any) -> None:
    sparse = recipe(
        '[[pass]]\nuse = "magnitude-score"\n[[pass]]\nuse = "allocate-widths"\n'
        '[[pass]]\nuse = "prune-channels"\n[[pass]]\nuse = "sparse-to-dense"\n'
        '[[pass]]\nuse = "sparsify-weights"\n'
    )
    result = compiler.compile(
        small_cnn(), IMAGES, target=Target(macs=0.4), rounds=2, recipe=sparse, measure=False
    )
    assert [p.name for p in result.report.passes].count("sparsify-weights") == 1
    data = images()
    with pytest.raises(PlanError, match="gradual masks the full-size model"):
        compiler.compile(
            small_cnn(), IMAGES, target=Target(macs=0.4), rounds=2, train=data,
            options={"distill": {"gradual": 0.5}},
        )  # fmt: skip
