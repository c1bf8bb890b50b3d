"""Least squares on data that say little: weights stay close to the cut, and other data are kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from repair_cases import Chain, data, details, seeded
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Result
from prunec.passes.calibration.moments import Moments
from prunec.passes.reconstruction import repair as repair_module
from prunec.passes.reconstruction.held_out import Split
from prunec.passes.reconstruction.ridge import RIDGES, choose

WIDTH = 24
Batches = list[Tensor]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 5)
    )


def of_rank(rank: int, batches: int = 8, rows: int = 64) -> Batches:
    """Distinct rows in few directions."""
    few, mix = data(rows, rank, count=batches), data(rank, WIDTH, count=1)[0]
    return [x @ mix + 1e-4 * y for x, y in zip(few, data(rows, WIDTH, count=batches), strict=True)]


def repeated(rows: int) -> Batches:
    """The same few rows in every batch."""
    return [torch.cat([data(rows, WIDTH, count=1)[0]] * (64 // rows)) for _ in range(8)]


def one_huge_feature() -> Batches:
    batches = [x.clone() for x in data(64, WIDTH, count=8)]
    for x in batches:
        x[:, 3] *= 1e5
    return batches


DEGENERATE: dict[str, Callable[[], Batches]] = {
    "two rows": lambda: repeated(2),
    "sixteen rows": lambda: repeated(16),
    "constant": lambda: [torch.ones(64, WIDTH, dtype=torch.float64)] * 8,
    "zero": lambda: [torch.zeros(64, WIDTH, dtype=torch.float64)] * 8,
    "rank 1": lambda: of_rank(1),
    "rank 4": lambda: of_rank(4),
    "one batch": lambda: of_rank(4)[:1],
    "one huge feature": one_huge_feature,
}


def cut_and_repaired(model: nn.Module, batches: Batches) -> tuple[Result, Result]:
    graph = compiler.capture(model, (torch.ones_like(batches[0]).normal_(),))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.4), passes.SparseToDense()]
    raw = compiler.PassManager(cut).run(graph, data(64, WIDTH, count=2))
    steps = [*cut, passes.Reconstruct(batches)]
    return raw, compiler.PassManager(steps).run(graph, data(64, WIDTH, count=2))


def error(result: Result, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
        return float((result.model(x) - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data_neither_grow_a_weight_nor_lose_other_data(kind: str) -> None:
    model = seeded(net)
    raw, result = cut_and_repaired(model, DEGENERATE[kind]())
    for before, after in zip(raw.model.parameters(), result.model.parameters(), strict=True):
        if before.dim() > 1:
            assert float(after.detach().norm()) <= 1.2 * float(before.detach().norm())
    other = data(500, WIDTH, count=9)[-1]
    assert error(result, model, other) < 1.1 * error(raw, model, other)


def test_good_data_repair_as_much_as_before() -> None:
    model = seeded(net)
    raw, result = cut_and_repaired(model, data(400, WIDTH, count=8))
    other = data(500, WIDTH, count=9)[-1]
    assert error(result, model, other) < 0.6 * error(raw, model, other)
    assert "rank" not in " ".join(result.report.notes)


def test_the_rank_of_the_data_is_told() -> None:
    _, result = cut_and_repaired(seeded(net), of_rank(2))
    assert any("calibration data of rank" in note for note in result.report.notes)
    assert "data of low rank" in result.report.passes[-1].summary
    layers = [layer for layer in details(result)["layers"].values() if "rank" in layer]
    assert layers
    assert all(layer["rank"] <= layer["inputs"] for layer in layers)


def test_a_constant_image_leaves_convolutions_close_to_the_cut() -> None:
    model = seeded(lambda: Chain(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)))
    images = [torch.ones(4, 3, 10, 10, dtype=torch.float64) * (1 + i) for i in range(6)]
    varied = data(4, 3, 10, 10)
    graph = compiler.capture(model, (varied[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    raw = compiler.PassManager(cut).run(graph, varied)
    result = compiler.PassManager([*cut, passes.Reconstruct(images)]).run(graph, varied)
    own, before = result.model.second.weight.detach(), raw.model.second.weight.detach()
    assert float((own - before).norm()) < 0.1 * float(before.norm())


def moments(x: Tensor, e: Tensor) -> Moments:
    made = Moments(1, x.shape[1], e.shape[1], x.device)
    made.add(x[None], e[None])
    return made


def test_the_largest_ridge_near_the_best_is_taken() -> None:
    """Noise beside a relation that the first ridges all find."""
    x, w = torch.cat(data(400, 8)), torch.cat(data(8, 3, count=1))
    e = x @ w + 0.5 * torch.cat(data(400, 3)).flip(0)
    ridge = choose(moments(x[:1200], e[:1200]), moments(x[1200:], e[1200:]), True).ridge
    assert ridge is not None
    assert 1e-2 <= ridge < max(RIDGES)


def test_a_change_that_would_do_harm_elsewhere_takes_a_larger_ridge() -> None:
    """The error is told by a direction in which the calibration data hardly move."""
    x = torch.cat(data(400, 8))
    x[:, 0] *= 1e-2
    e = 100 * x[:, :1] + 0.1 * torch.cat(data(400, 1)).flip(0)
    found = choose(moments(x[:1200], e[:1200]), moments(x[1200:], e[1200:]), True)
    assert found.rank > 8 * 0.75
    assert found.ridge is None or found.ridge in RIDGES[3:]


def test_repeated_rows_are_never_on_both_sides() -> None:
    rows = torch.cat(data(10, 6, count=1))
    split = Split(8)
    assert split.order[-2:] == [3, 7]
    for batch in split.order:
        own = rows if batch != 7 else torch.cat([rows, rows + 1])
        fit, apart = split.deal(batch, own[None], torch.arange(len(own)))
        assert not bool((fit & apart).any())
        assert bool((fit | apart).all())
        assert int(apart.sum()) == (10 if batch == 7 else 0)
    assert split.distinct == 20


def test_few_batches_are_split_by_sample() -> None:
    rows = torch.cat(data(24, 6, count=1))
    fit, apart = Split(1).deal(0, rows[None], torch.arange(24) // 3)  # of three rows each
    assert apart.nonzero().flatten().tolist() == [9, 10, 11, 21, 22, 23]
    assert bool((fit ^ apart).all())


def test_a_repair_that_is_worse_on_what_is_kept_apart_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = iter(((0.5, 0.5), (0.3, 0.6)))
    monkeypatch.setattr(repair_module, "output_errors", lambda *_: next(errors))
    raw, result = cut_and_repaired(seeded(net), data(200, WIDTH, count=8))
    for before, after in zip(raw.model.parameters(), result.model.parameters(), strict=False):
        if before.shape == after.shape:
            assert torch.equal(before, after)
    assert any("repair was undone" in note for note in result.report.notes)


def test_no_weight_grows_beyond_the_bound() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 32), nn.Linear(32, 5)))
    batches = data(200, 8)
    graph = compiler.capture(model, (batches[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.7), passes.SparseToDense()]
    steps = [*cut, passes.Reconstruct(ridge=1e-9, growth=1.0)]
    result = compiler.PassManager(steps).run(graph, batches)
    own, original = result.model.second.weight.detach(), model.second.weight.detach()
    assert float(own.norm()) <= float(original.norm()) * (1 + 1e-9)


def test_a_channel_that_does_not_move_keeps_its_statistics() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.norm(self.first(x))))

    model = seeded(Normed)
    still = [torch.ones(32, 6, dtype=torch.float64) * 0.5 for _ in range(4)]
    graph = compiler.capture(model, (data(32, 6)[0],))
    steps = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=0.5),
        passes.SparseToDense(),
        passes.RecalibrateBatchNorm(still),
    ]
    result = compiler.PassManager(steps).run(graph, data(32, 6))
    assert bool((result.model.norm.running_var == 1).all())


def test_a_layer_of_many_inputs_is_solved_through_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "EXACT", 20)
    monkeypatch.setattr(repair_module, "REDUCED", 20)
    monkeypatch.setattr("prunec.passes.calibration.reduction.REDUCED", 20)
    model = seeded(lambda: Chain(nn.Conv1d(3, 16, 5), nn.Conv1d(16, 4, 8)))
    batches = data(60, 3, 30, count=8)
    graph = compiler.capture(model, (batches[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    result = compiler.PassManager([*cut, passes.Reconstruct()]).run(graph, batches)
    layer = details(result)["layers"]["second.weight"]
    assert layer["kind"] == "least squares"
    assert "groups of inputs by" in layer["note"]
    before, after = details(result)["output error"]
    assert after < 0.95 * before


def test_a_narrow_layer_before_does_not_count_as_data_of_low_rank() -> None:
    """Inputs made by a bottleneck have no more directions than it, whatever the data."""
    widths = [WIDTH, 16, 4, 16, 8, 3]
    model = seeded(
        lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    )
    graph = compiler.capture(model, (data(64, WIDTH, count=1)[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.25), passes.SparseToDense()]
    batches = data(400, WIDTH, count=8)
    result = compiler.PassManager([*cut, passes.Reconstruct(batches)]).run(graph, batches)
    assert "low rank" not in " ".join(result.report.notes)
    assert not any("low" in layer for layer in details(result)["layers"].values())
