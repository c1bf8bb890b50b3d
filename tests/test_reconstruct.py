"""Least-squares repair: against torch.linalg.lstsq, never worse, what is left alone and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled import compress_tokens
from repair_cases import EXACT, Chain, Conv1D, Product, best, data, details, repaired, seeded
from tiny_models import tiny_llama
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.errors import PlanError
from prunec.passes.calibration.moments import Moments
from prunec.passes.reconstruction import repair as repair_module
from prunec.passes.reconstruction.ridge import RIDGES, choose

# The mathematics.


@pytest.mark.parametrize(
    "second", [lambda: nn.Linear(16, 5), lambda: nn.Linear(16, 5, bias=False), Conv1D]
)
def test_linear_layers_are_solved_as_lstsq_does(second: Callable[[], nn.Module]) -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), second()))
    batches = data(3, 10, 8)
    raw, result = repaired(model, batches)
    x = torch.relu(raw.model.first(torch.cat(batches).flatten(0, 1)))
    weight, bias = best(x, model(torch.cat(batches)).flatten(0, 1))
    found = result.model.second
    torch.testing.assert_close(found.weight if second is Conv1D else found.weight.T, weight)
    torch.testing.assert_close(found.bias, bias)


@pytest.mark.parametrize("flipped", [False, True])
def test_products_without_a_bias_are_solved_without_one(flipped: bool) -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), Product(flipped)))
    batches = data(30, 8)
    raw, result = repaired(model, batches)
    x = torch.relu(raw.model.first(torch.cat(batches)))
    expected = torch.linalg.lstsq(x, model(torch.cat(batches))).solution
    found = result.model.second.weight
    torch.testing.assert_close(found.T if flipped else found, expected)
    assert "no standard layer" in details(result)["layers"]["second.weight"]["note"]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": 2, "dilation": (1, 2), "bias": False},
        {"kernel_size": 3, "padding": "same", "groups": 4},
        {"kernel_size": 3, "groups": 2, "stride": 2},
    ],
)
def test_convolutions_are_solved_as_lstsq_does_in_each_group(options: dict[str, Any]) -> None:
    model = seeded(lambda: Chain(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, **options)))
    batches = data(4, 3, 12, 12)
    raw, result = repaired(model, batches)
    layer = raw.model.second
    x = torch.relu(raw.model.first(torch.cat(batches)))
    if options.get("padding") is not None:
        x = F.pad(x, (1, 1, 1, 1))
    rows = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    groups = layer.groups
    inputs = rows.unflatten(1, (groups, -1)).movedim(1, 0).mT.flatten(1, 2)
    targets = model(torch.cat(batches)).flatten(2)
    targets = targets.unflatten(1, (groups, -1)).movedim(1, 0).mT.flatten(1, 2)
    for group, (own, target) in enumerate(zip(inputs, targets, strict=True)):
        weight, bias = best(own, target)
        outputs = slice(group * 8 // groups, (group + 1) * 8 // groups)
        found = result.model.second
        torch.testing.assert_close(found.weight[outputs].flatten(1).T, weight)
        torch.testing.assert_close(found.bias[outputs], bias)


def test_convolutions_over_three_axes_are_solved() -> None:
    model = seeded(lambda: Chain(nn.Conv3d(2, 8, 3), nn.Conv3d(8, 3, (2, 1, 2), stride=(1, 2, 1))))
    batches = data(6, 2, 6, 6, 6)
    raw, result = repaired(model, batches)
    x = torch.relu(raw.model.first(torch.cat(batches)))
    # the taps of [N, C, D, H, W], one by one, as the kernel (2, 1, 2) places them
    taps = [x[:, :, i : i + 3, ::2, k : k + 3] for i in range(2) for k in range(2)]
    rows = torch.stack(taps, 2).flatten(1, 2).movedim(1, -1).flatten(0, -2)
    target = model(torch.cat(batches)).movedim(1, -1).flatten(0, -2)
    weight, bias = best(rows, target)
    torch.testing.assert_close(result.model.second.weight.flatten(1).T, weight)
    torch.testing.assert_close(result.model.second.bias, bias)


def test_convolutions_over_one_axis_are_solved() -> None:
    model = seeded(lambda: Chain(nn.Conv1d(3, 16, 3), nn.Conv1d(16, 6, 3, padding=1)))
    batches = data(4, 3, 20)
    raw, result = repaired(model, batches)
    x = F.pad(torch.relu(raw.model.first(torch.cat(batches))), (1, 1))
    rows = x.unfold(2, 3, 1).permute(0, 2, 1, 3).reshape(-1, 24)
    weight, bias = best(rows, model(torch.cat(batches)).mT.reshape(-1, 6))
    torch.testing.assert_close(result.model.second.weight.flatten(1).T, weight)
    torch.testing.assert_close(result.model.second.bias, bias)


def test_the_bias_goes_into_the_mean_of_a_batch_norm_behind() -> None:
    model = seeded(
        lambda: Chain(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3, bias=False), nn.BatchNorm2d(8))
    )
    batches = data(4, 3, 12, 12)
    raw, result = repaired(model, batches)
    x = torch.relu(raw.model.first(torch.cat(batches)))
    target = model.second(torch.relu(model.first(torch.cat(batches))))
    weight, bias = best(F.unfold(x, 3).mT.flatten(0, 1), target.flatten(2).mT.flatten(0, 1))
    torch.testing.assert_close(result.model.second.weight.flatten(1).T, weight)
    assert result.model.second.bias is None
    moved = model.behind.running_mean - result.model.behind.running_mean
    torch.testing.assert_close(moved, bias)


def test_the_bias_goes_into_a_constant_that_was_folded_behind() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), Product()))
    with torch.no_grad():
        model.first.weight[3], model.first.bias[3] = 0, 1  # this channel is always 1,
        model.second.weight[3] = 10  # and too heavy to be cut
    batches = data(30, 8)
    raw, result = repaired(model, batches)
    name = next(n for n in raw._state.dense.program.tensors if n.startswith("prunec_constant_"))
    x = torch.relu(raw._state.dense.graph_module.first(torch.cat(batches)))
    weight, bias = best(x, model(torch.cat(batches)))
    tensors = result._state.dense.program.tensors
    torch.testing.assert_close(tensors["second.weight"], weight)
    torch.testing.assert_close(tensors[name].reshape(-1), bias)
    assert "note" not in details(result)["layers"]["second.weight"]


def test_a_batch_norm_over_another_axis_takes_no_bias() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), nn.Linear(16, 7, bias=False), nn.BatchNorm1d(7)))
    _, result = repaired(model, data(9, 7, 8))  # the norm runs over positions
    assert torch.equal(result.model.behind.running_mean, model.behind.running_mean)
    layer = details(result)["layers"]["second.weight"]
    assert layer["kind"] == "least squares"
    assert "another axis" in layer["note"]


def test_each_layer_is_solved_on_what_the_repaired_ones_give() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
        )
    )
    batches = data(40, 8)
    _, result = repaired(model, batches)
    x = result.model[:4](torch.cat(batches))  # the first two layers, the second one repaired
    weight, bias = best(x, model(torch.cat(batches)))
    torch.testing.assert_close(result.model[4].weight.T, weight)
    torch.testing.assert_close(result.model[4].bias, bias)


def test_the_ridge_is_on_the_change() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), nn.Linear(16, 5)))
    batches = data(30, 8)
    raw, stiff = repaired(model, batches, ridge=1e6)
    torch.testing.assert_close(
        stiff.model.second.weight, raw.model.second.weight, atol=1e-4, rtol=0
    )
    x = torch.relu(raw.model.first(torch.cat(batches)))
    error = model(torch.cat(batches)) - raw.model.second(x)
    x, error = x - x.mean(0), error - error.mean(0)
    ridge = 0.1 * (x.square().sum(0).mean()) * torch.eye(x.shape[1])
    change = torch.linalg.solve(x.T @ x + ridge, x.T @ error)
    _, result = repaired(model, batches, ridge=0.1)
    torch.testing.assert_close(result.model.second.weight.T, raw.model.second.weight.T + change)


class Siamese(nn.Module):
    """The same layers read two inputs; or, with `follow`, one reads its own result."""

    def __init__(self, follow: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.follow = follow

    def tower(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def features(self, x: Tensor) -> Tensor:
        y = self.tower(x)
        return torch.tanh(self.tower(y) if self.follow else y - self.tower(2 * x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_a_weight_read_at_several_nodes_is_solved_on_all_of_them() -> None:
    model = seeded(lambda: Siamese(follow=False))
    batches = data(40, 8)
    graph = compiler.capture(model, (batches[0],))
    hidden = next(d.name for d in graph.prunable.values() if d.size == 16)
    cut = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=0.5, include=hidden),
        passes.SparseToDense(),
    ]
    raw = compiler.PassManager(cut).run(graph, batches)
    steps = [*cut, passes.Reconstruct(ridge=EXACT)]
    result = compiler.PassManager(steps).run(graph, batches)
    x = torch.cat([torch.cat(batches), 2 * torch.cat(batches)])
    weight, bias = best(torch.relu(raw.model.first(x)), model.tower(x))
    torch.testing.assert_close(result.model.second.weight.T, weight)
    torch.testing.assert_close(result.model.second.bias, bias)
    # and the head was solved on what the repaired towers give
    weight, _ = best(result.model.features(torch.cat(batches)), model(torch.cat(batches)))
    torch.testing.assert_close(result.model.head.weight.T, weight)


# What is left alone.


def test_uses_that_follow_one_another_are_left_alone() -> None:
    model = seeded(lambda: Siamese(follow=True))
    raw, result = repaired(model, data(40, 8))
    assert torch.equal(result.model.second.weight, raw.model.second.weight)
    reasons = details(result)["not treated"].values()
    assert sum("follow one another" in reason for reason in reasons) == 4


@pytest.mark.slow
def test_tied_weights_are_left_alone() -> None:
    tokens = [{"input_ids": torch.randint(0, 99, (8, 7))} for _ in range(4)]
    model = tiny_llama(tie_word_embeddings=True)
    raw = compress_tokens(model)
    result = compress_tokens(model, calibration=tokens)
    table = result.model.model.embed_tokens.weight
    assert table is result.model.lm_head.weight
    assert torch.equal(table, raw.model.model.embed_tokens.weight)
    assert not torch.equal(
        result.model.model.layers[0].mlp.down_proj.weight,
        raw.model.model.layers[0].mlp.down_proj.weight,
    )
    report = next(p for p in result.report.passes if p.name == "reconstruct")
    assert "also read by embedding" in report.details["not treated"]["linear_7"]


class Attention(nn.Module):
    """Fused attention, which derives its scale from the width of its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(10, 24) for _ in range(3))
        self.proj = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_weights_that_hold_a_scale_are_left_alone() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10)))
    model = nn.Sequential(model, seeded(Attention)).eval()
    batches = data(5, 6, 10, count=8)
    graph = compiler.capture(model, (batches[0],))
    cut = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=0.5, include=["hidden", "head-dim"]),
        passes.SparseToDense(),
    ]
    raw, result = (
        compiler.PassManager([*cut, *last]).run(graph, batches)
        for last in ([], [passes.Reconstruct(progress=False)])
    )
    assert set(result.plan.scales) == {"1.q.weight", "1.q.bias"}
    assert torch.equal(result.model[1].q.weight, raw.model[1].q.weight)
    assert not torch.equal(result.model[1].v.weight, raw.model[1].v.weight)
    assert "holds an attention's scale" in str(details(result)["not treated"])
    before, after = details(result)["output error"]
    assert after < before / 2


def test_few_rows_change_the_bias_only() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 64), nn.Linear(64, 5)))
    batches = data(4, 8)  # 16 rows for 32 inputs
    raw, result = repaired(model, batches)
    x = torch.cat(batches)
    assert torch.equal(result.model.second.weight, raw.model.second.weight)
    shift = (model(x) - raw.model(x)).mean(0)
    torch.testing.assert_close(result.model.second.bias, raw.model.second.bias + shift)
    assert details(result)["layers"]["second.weight"]["kind"] == "bias"


def test_a_layer_whose_moments_exceed_memory_gets_a_bias_only() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 64), nn.Linear(64, 5)))
    raw, result = repaired(model, data(100, 8), memory=4000)
    assert torch.equal(result.model.second.weight, raw.model.second.weight)
    assert "exceed memory" in details(result)["layers"]["second.weight"]["note"]


def test_kinds_that_are_not_solved_for_are_listed() -> None:
    model = seeded(lambda: Chain(nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 4, 2)))
    graph = compiler.capture(model, (data(4, 3, 12, 12)[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    steps = [*cut, passes.Reconstruct(progress=False)]
    result = compiler.PassManager(steps).run(graph, data(4, 3, 12, 12))
    reasons = details(result)["not treated"]
    assert list(reasons.values()) == ["conv_transpose2d is not a kind that is solved for"]
    assert "1 contractions not treated" in result.report.passes[-1].summary


def test_layers_before_any_cut_stay_bit_for_bit() -> None:
    model = seeded(lambda: Chain(nn.Linear(8, 16), nn.Linear(16, 5)))
    raw, result = repaired(model, data(30, 8))
    assert torch.equal(result.model.first.weight, raw.model.first.weight)
    assert details(result)["layers"]["first.weight"]["kind"] == "exact"


# Never worse.


def test_a_change_that_would_not_help_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    real = repair_module.solve
    monkeypatch.setattr(repair_module, "solve", lambda *a: 100 * real(*a))
    model = seeded(lambda: Chain(nn.Linear(8, 16), nn.Linear(16, 5)))
    raw, result = repaired(model, data(30, 8))
    assert torch.equal(result.model.second.weight, raw.model.second.weight)
    assert details(result)["layers"]["second.weight"]["kind"] == "bias"
    monkeypatch.setattr(repair_module, "best_shift", lambda m, _: torch.full_like(m.e, 1e6))
    raw, result = repaired(model, data(30, 8))
    assert torch.equal(result.model.second.bias, raw.model.second.bias)
    assert details(result)["layers"]["second.weight"]["kind"] == "kept"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_layer_gets_worse_on_the_calibration_data(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4)
    ).to(dtype)
    batches = [x.to(dtype) for x in data(50, 8)]
    _, result = repaired(model.eval(), batches, ridge=1e-2)
    layers = details(result)["layers"].values()
    assert all(o.get("after", 0) < o["before"] for o in layers if o["kind"] != "exact")
    assert [o["kind"] for o in layers].count("least squares") == 2
    before, after = details(result)["output error"]
    assert after < before


def test_half_precision_convolutions_are_repaired() -> None:
    torch.manual_seed(0)
    model = Chain(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)).to(torch.bfloat16).eval()
    _, result = repaired(model, [x.bfloat16() for x in data(4, 3, 12, 12)], ridge=1e-2)
    before, after = details(result)["output error"]
    assert after < before / 2
    assert result.model.second.weight.dtype == torch.bfloat16


def test_all_is_undone_where_the_outputs_would_not_come_closer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = iter(((0.5, 0.5), (0.6, 0.4)))
    monkeypatch.setattr(repair_module, "output_errors", lambda *_: next(errors))
    model = seeded(lambda: Chain(nn.Linear(8, 16), nn.Linear(16, 5, bias=False)))
    raw, result = repaired(model, data(30, 8))
    assert torch.equal(result.model.second.weight, raw.model.second.weight)
    assert not result.model.second.bias.any()
    assert "all undone" in result.report.passes[-1].summary


@pytest.mark.parametrize("options", [{"ridge": -1.0}, {"rows": 0}, {"memory": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="must be at least"):
        passes.Reconstruct(**options)


# The ridge.


def moments(rows: Tensor, errors: Tensor) -> Moments:
    found = Moments(1, rows.shape[1], errors.shape[1], rows.device)
    found.add(rows[None], errors[None])
    return found


def test_what_the_inputs_can_replace_is_replaced_fully() -> None:
    x, w = torch.cat(data(50, 6)), torch.cat(data(6, 3, count=1))
    ridge = choose(moments(x[:150], x[:150] @ w), moments(x[150:], x[150:] @ w), True).ridge
    assert ridge == min(RIDGES)


def test_noise_takes_a_large_ridge_or_none() -> None:
    x, noise = torch.cat(data(10, 30)), 100 * torch.cat(data(10, 4)).flip(0)
    ridge = choose(moments(x[:32], noise[:32]), moments(x[32:], noise[32:]), True).ridge
    assert ridge is None or ridge == max(RIDGES)


def test_moments_of_two_parts_are_those_of_the_whole() -> None:
    x, e = torch.cat(data(10, 6)), torch.cat(data(10, 2))
    whole, parts = moments(x, e), moments(x[:13], e[:13]) + moments(x[13:], e[13:])
    assert parts.count == whole.count
    for name in ("x", "e", "ee", "xx", "xe"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_repair_of_a_redundant_layer_is_exact() -> None:
    """Every cut channel is a copy of one that stays."""
    model = seeded(lambda: Chain(nn.Linear(6, 16), nn.Linear(16, 5)))
    with torch.no_grad():
        model.first.weight[8:], model.first.bias[8:] = model.first.weight[:8], model.first.bias[:8]
        model.first.weight[8:] *= 0.5
        model.first.bias[8:] *= 0.5
        model.second.weight[:, 8:] *= 0.1  # by magnitude they go first
    batches = data(50, 6)
    raw, result = repaired(model, batches, ridge=None)
    assert not torch.allclose(raw.model(batches[0]), model(batches[0]), atol=1e-2)
    torch.testing.assert_close(result.model(batches[0]), model(batches[0]), rtol=1e-6, atol=1e-7)


def test_without_weights_only_biases_move() -> None:
    model = seeded(lambda: Chain(nn.Linear(6, 16), nn.Linear(16, 5)))
    raw, result = repaired(model, data(50, 6), weights=False)
    assert torch.equal(raw.model.second.weight, result.model.second.weight)
    assert not torch.equal(raw.model.second.bias, result.model.second.bias)
    assert details(result)["layers"]["second.weight"]["kind"] == "bias"
