"""Gradual pruning while distilling: the mask grows over the full-size model, then it is cut."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from test_distill import LOADER, X, mlp, same, weights
from test_reconstruct import Attention
from tiny_models import small_cnn, tiny_bert
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prunec import passes
from prunec.compiler import PassManager, Result, capture
from prunec.compiler.capture.batches import split_batch
from prunec.compiler.compilation import Compilation
from prunec.passes.distillation import masks
from prunec.passes.distillation.losses import DistillError
from prunec.passes.distillation.masks import GrowingMask, share_masked
from prunec.passes.distillation.modes import in_mode

Seen = dict[str, list[Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """How many entries are masked after each step; the two models' answers at the cut."""
    found: Seen = {"along": [], "masked": [], "apart": []}
    hold, cut = GrowingMask.hold, GrowingMask.cut

    def watched_hold(self: GrowingMask, along: float) -> None:
        hold(self, along)
        found["along"].append(along)
        found["masked"].append(sum(self.masked.values()))

    def watched_cut(self: GrowingMask) -> None:
        cut(self)
        graph = self.state.graph
        call = graph.program.args, graph.program.kwargs
        dense, full = answer(self.state.model, call), answer(self.model, call)
        found["apart"].append(((dense - full).norm() / full.norm()).item())

    monkeypatch.setattr(GrowingMask, "hold", watched_hold)
    monkeypatch.setattr(GrowingMask, "cut", watched_cut)
    return found


def answer(model: nn.Module, call: Any) -> Tensor:
    args, kwargs = call
    with torch.no_grad(), in_mode(model, training=False):
        return pytree.tree_leaves(model(*args, **kwargs))[0]


def pruned(model: nn.Module, loader: Any, include: str | None = None, **options: Any) -> Result:
    given = {"steps": 8, "gradual": 0.5, "learning_rate": 1e-2, "progress": False, **options}
    steps = [
        passes.MagnitudeScore(),
        passes.PruneChannels(0.5, include=include),
        passes.SparseToDense(),
        passes.Distill(loader, **given),
    ]
    args, _, _ = split_batch(loader[0], None)
    return PassManager(steps).run(capture(model, args))


def test_the_share_follows_the_cubic_schedule() -> None:
    assert share_masked(0.0) == 0
    assert share_masked(0.5) == pytest.approx(0.875)
    assert share_masked(1.0) == 1


def test_the_mask_grows_by_the_schedule_and_the_run_goes_on_dense(seen: Seen) -> None:
    model = mlp(32).eval()
    before = weights(model)
    result = pruned(model, LOADER, steps=16)
    assert seen["along"][:8] == pytest.approx([i / 8 for i in range(1, 9)])
    assert seen["masked"] == [round(16 * (1 - (1 - i / 8) ** 3)) for i in range(1, 9)]
    assert seen["apart"][0] < 1e-5
    assert same(weights(model), before)
    assert not model.training
    details = result.report.passes[-1].details
    assert details["steps"] == 16
    assert details["steps of the growing mask"] == 8
    assert "in 8 steps after 8 with a growing mask" in result.report.passes[-1].summary


@pytest.mark.parametrize(
    ("build", "batch", "include"),
    [
        (small_cnn, lambda: torch.randn(4, 3, 8, 8), None),
        (tiny_bert, lambda: torch.randint(0, 90, (4, 7)), "hidden"),
        (tiny_bert, lambda: torch.randint(0, 90, (4, 7)), "head-dim"),
    ],
)
def test_masked_is_dense_at_the_cut_for_exact_dimensions(
    build: Callable[[], nn.Module], batch: Callable[[], Tensor], include: str | None, seen: Seen
) -> None:
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    pruned(model, [batch() for _ in range(2)], include, steps=4)
    assert seen["apart"][0] < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_attention_scales_that_moved_into_weights_do_so_again(seen: Seen) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 10)
    result = pruned(Attention().eval(), [x, x.flip(0)], "head-dim", steps=4)
    assert set(result.plan.scales) == {"q.weight", "q.bias"}
    assert seen["apart"][0] < 1e-5


def test_dead_entries_go_with_their_constants(seen: Seen) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[:8] = 0
        model[0].bias[:8] = 4.0  # what the rewrite adds behind the last layer
    steps = [passes.SparseToDense(), passes.Distill([X], steps=4, gradual=0.5, progress=False)]
    result = PassManager(steps).run(capture(model, (X,)))
    assert [len(gone) for gone in result.plan.dead.values()] == [8]
    assert seen["masked"][1] == 8
    assert seen["apart"][0] < 1e-5


def test_norm_coupled_dimensions_are_made_up_for(seen: Seen) -> None:
    result = pruned(tiny_bert(), [torch.randint(0, 90, (4, 7))], "residual", steps=4)
    assert seen["apart"][0] > 1e-3
    assert result.report.passes[-1].details["steps"] == 4


def test_lowest_scores_go_first() -> None:
    model = mlp(8).eval()
    graph = capture(model, (X,))
    state = Compilation(graph)
    for step in (passes.MagnitudeScore(), passes.PruneChannels(0.5), passes.SparseToDense()):
        step.run(state)
    mask = GrowingMask(state, torch.device("cpu"))
    (name,) = state.plan.kept
    assert state.scores is not None
    order = state.scores[name].argsort()
    mask.hold(0.1)  # 1 - 0.9 ** 3 of four: one
    first = mask.model.get_parameter("0.weight")
    assert first.abs().sum(1).eq(0).nonzero().tolist() == [[order[0].item()]]
    mask.hold(1.0)
    zero = first.abs().sum(1).eq(0).nonzero().reshape(-1).tolist()
    assert zero == sorted(order[:4].tolist())
    assert mask.model.get_parameter("4.weight")[:, zero].abs().sum() == 0


def test_the_dense_part_goes_on_as_the_masked_model_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's moments are cut too, so with a complete mask the parts are one run."""
    monkeypatch.setattr(masks, "share_masked", lambda along: 1.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    early, late = (
        pruned(model, LOADER, gradual=share, features=0.0, clip=None).model
        for share in (0.25, 0.75)
    )
    for a, b in zip(weights(early), weights(late), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_bias_that_the_repair_added_begins_at_zero_again(seen: Seen) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()
    steps = [
        passes.MagnitudeScore(),
        passes.PruneChannels(0.5),
        passes.SparseToDense(),
        passes.Reconstruct([X], progress=False),
        passes.Distill([X], steps=4, gradual=0.5, progress=False),
    ]
    result = PassManager(steps).run(capture(model, (X,)))
    assert result.report.passes[-2].details["biases added"]
    assert any("the repair before Distill was lost" in note for note in result.report.notes)
    assert seen["apart"][0] < 1e-5


@pytest.mark.parametrize("stop", [3, 7])
def test_resuming_is_exact(tmp_path: pathlib.Path, stop: int) -> None:
    """In the part of the growing mask, and behind it."""

    class Interrupted(Exception):
        pass

    options: dict[str, Any] = {"ema": 0.9, "checkpoint_every": 1}
    whole = pruned(mlp(16), LOADER, **options).model
    steps: list[int] = []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) > stop:
            raise Interrupted

    hook = register_optimizer_step_pre_hook(interrupt)
    try:
        with pytest.raises(Interrupted):
            pruned(mlp(16), LOADER, checkpoint=tmp_path, **options)
    finally:
        hook.remove()
    again = pruned(mlp(16), LOADER, checkpoint=tmp_path, **options)
    assert again.report.passes[-1].details["resumed at"] == stop
    assert same(weights(again.model), weights(whole))


def test_the_metric_is_that_of_the_dense_model() -> None:
    widths: list[int] = []

    def metric(model: nn.Module) -> float:
        widths.append(model.get_parameter("0.weight").shape[0])
        return -float(len(widths))

    result = pruned(mlp(16), LOADER, metric=metric, evaluate_every=2)
    assert widths == [8, 8, 8]
    details = result.report.passes[-1].details
    assert details["metric"] == [[4, -1.0], [6, -2.0], [8, -3.0]]
    assert "metric -1 -> -1 at step 4, which was kept" in result.report.passes[-1].summary


def test_what_gradual_cannot_do_is_refused() -> None:
    for share in (0.0, 1.0, -1):
        with pytest.raises(DistillError, match="gradual"):
            passes.Distill(LOADER, gradual=share)
    with pytest.raises(DistillError, match="1 steps so that one part has none"):
        pruned(mlp(8), LOADER, steps=1)
    state = Compilation(capture(mlp(8).eval(), (X,)))
    with pytest.raises(DistillError, match="no dense model"):
        GrowingMask(state, torch.device("cpu"))
