"""Rounds: a target reached in steps, each from the weights of the last, proven on the original."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from test_allocation import deep_bert
from test_attention_scale import DefaultScale
from tiny_models import IDS, IMAGES, parameters, small_cnn, tiny_bert, tiny_llama

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.errors import PlanError
from prunec.compiler.rounds import GONE, round_targets, sizes_left
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


def test_a_later_round_has_checkpoints_of_its_own(tmp_path: pathlib.Path) -> None:
    data = images()
    options = {
        "steps": 3,
        "progress": False,
        "checkpoint": tmp_path / "run",
        "checkpoint_every": 1,
    }

    def compiled() -> compiler.Result:
        return compiler.compile(
            small_cnn(), (IMAGES,), target=Target(macs=0.3), rounds=2, calibration=data,
            train=data, measure=False, options={"distill": options},
        )  # fmt: skip

    first = compiled()
    assert (tmp_path / "run" / "round-2" / "step-3").is_dir()
    again = compiled()  # both rounds resume at their ends
    trained = [p for p in again.report.passes if p.name == "distill"]
    assert ["resumed at" in p.details for p in trained] == [True, True]
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


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


def test_a_compile_goes_on_where_it_was_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images()
    asked = {"distill": {"steps": 3, "progress": False, "checkpoint_every": 1}}

    def compiled(place: pathlib.Path | None, target: Target = Target(macs=0.3)) -> compiler.Result:  # noqa: B008
        return compiler.compile(
            small_cnn(), (IMAGES,), target=target, rounds=2, calibration=data, train=data,
            measure=False, options=asked, checkpoint=place,
        )  # fmt: skip

    whole = compiled(None)
    place, steps = tmp_path / "run", []
    original = passes.Distill.run

    def killed(self: Any, state: Any) -> Any:
        steps.append(state.round)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return original(self, state)

    monkeypatch.setattr(passes.Distill, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        compiled(place)
    monkeypatch.setattr(passes.Distill, "run", original)

    def never(self: Any, state: Any) -> Any:
        raise AssertionError("planned again")

    monkeypatch.setattr(passes.AllocateWidths, "run", never)
    result = compiled(place)
    assert result.plan.kept == whole.plan.kept
    for a, b in zip(whole.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert result.report.aim == whole.report.aim
    names = [p.name for p in result.report.passes]
    assert names.count("known-plan") == 2
    with pytest.raises(PlanError, match=r"another compile \(it differs in target"):
        compiled(place, Target(macs=0.4))


def test_dropped_branches_are_in_the_plan_that_is_kept(tmp_path: pathlib.Path) -> None:
    data = tokens()

    def compiled() -> compiler.Result:
        return compiler.compile(
            deep_bert(), kwargs={"input_ids": IDS}, target=Target(macs=0.6), calibration=data,
            measure=False, options={"allocate-widths": {"depth": 0.5, "exact_only": True}},
            checkpoint=tmp_path,
        )  # fmt: skip

    first, again = compiled(), compiled()
    assert first.plan == again.plan
    assert first.plan.dropped
    assert [b.state for b in first.report.branches] == [b.state for b in again.report.branches]
