"""Scores: what each pass says of an entry, against the definition."""

from __future__ import annotations

import pytest
import torch
from repair_cases import Chain, data, details, seeded
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Result
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PlanError
from prunec.compiler.pass_class import Pass


def scored(model: nn.Module, step: Pass, batches: list[Tensor]) -> Compilation:
    """The state after a score alone."""
    graph = compiler.capture(model, (batches[0],))
    state = Compilation(graph, [graph.program.flat_inputs((b,), {}) for b in batches])
    step.run(state)
    return state


def only(scores: dict[str, Tensor] | None) -> Tensor:
    assert scores is not None
    (found,) = scores.values()
    return found


def mlp() -> Chain:
    return Chain(nn.Linear(6, 16), nn.Linear(16, 5))


def hidden(model: Chain, batches: list[Tensor]) -> Tensor:
    return torch.cat([torch.relu(model.first(b)) for b in batches]).detach()


def test_random_scores_follow_their_seed() -> None:
    model, batches = seeded(mlp), data(8, 6)
    one, two, three = (
        only(scored(model, passes.RandomScore(seed=seed), batches).scores) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_batch_norm_scores_are_its_scales() -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 5)
        )

    model = seeded(net)
    nn.init.normal_(model[1].weight)  # type: ignore[index, arg-type]
    state = scored(model, passes.BatchNormScore(), data(8, 6))
    assert state.scores is not None
    found = next(s for s in state.scores.values() if len(s) == 16)
    gamma = model[1].weight.detach().abs()  # type: ignore[index, union-attr]
    torch.testing.assert_close(found, gamma / gamma.mean())
    magnitude = scored(model, passes.MagnitudeScore(), data(8, 6)).scores
    assert magnitude is not None
    other = next(name for name, s in state.scores.items() if len(s) == 8)
    torch.testing.assert_close(state.scores[other], magnitude[other])


def test_batch_norm_scores_need_a_batch_norm() -> None:
    with pytest.raises(PlanError, match="no batch norm"):
        scored(seeded(mlp), passes.BatchNormScore(), data(8, 6))


def test_activation_scores_are_variance_times_weight() -> None:
    model, batches = seeded(mlp), data(50, 6)
    found = only(scored(model, passes.ActivationScore(), batches).scores)
    assert isinstance(model.second, nn.Linear)
    each = hidden(model, batches).var(0, correction=0) * model.second.weight.square().sum(0)
    torch.testing.assert_close(found, (each / each.mean()).detach())


def test_taylor_scores_are_squared_mask_derivatives() -> None:
    """With every draw of noise the derivative by a mask, from autograd."""
    model, batches = seeded(mlp), data(20, 6, count=2)
    found = only(scored(model, passes.TaylorScore(draws=400), batches).scores)
    x = hidden(model, batches)
    assert isinstance(model.second, nn.Linear)
    # dz/dmask_j = x_j W_:j, so for e ~ N(0, 1) the mean of (z'.e)² is sum over rows of x_j² |W_:j|²
    exact = (x.square().sum(0) * model.second.weight.square().sum(0)).detach()
    torch.testing.assert_close(found, exact / exact.mean(), rtol=0.35, atol=0.02)


def test_taylor_scores_of_the_callers_own_gradients() -> None:
    model, batches = seeded(mlp), data(20, 6)
    with pytest.raises(PlanError, match="backward"):
        scored(model, passes.TaylorScore(own_gradients=True), batches)
    mask = torch.ones(16, dtype=torch.float64, requires_grad=True)
    loss = model.second(torch.relu(model.first(batches[0])) * mask).square().sum()
    loss.backward()
    found = only(scored(model, passes.TaylorScore(own_gradients=True), batches).scores)
    assert mask.grad is not None
    torch.testing.assert_close(found, mask.grad.square() / mask.grad.square().mean())


def after_repair(model: nn.Module, batches: list[Tensor], ratio: float) -> tuple[Result, Tensor]:
    """The result of second-order choice and repair, and the curve of the one dimension."""
    exact = {"ridge": 1e-13, "progress": False}
    state = scored(model, passes.SecondOrderScore(**exact), batches)
    graph = compiler.capture(model, (batches[0],))
    pipeline = [
        passes.SecondOrderScore(**exact),
        passes.PruneChannels(ratio=ratio),
        passes.SparseToDense(),
        passes.Reconstruct(**exact),
    ]
    return compiler.PassManager(pipeline).run(graph, batches), only(state.errors)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (mlp, (50, 6)),
        (lambda: Chain(nn.Conv2d(2, 16, 3), nn.Conv2d(16, 4, 3)), (8, 2, 9, 9)),
        (lambda: Chain(nn.Conv1d(2, 16, 3), nn.Conv1d(16, 4, 3, groups=4)), (30, 2, 9)),
        (lambda: Chain(nn.Conv2d(2, 16, 3), nn.Flatten(), nn.Linear(64, 4)), (60, 2, 4, 4)),
    ],
    ids=["linear", "convolution", "grouped", "flattened"],
)
def test_the_error_foretold_is_the_error_after_repair(build, shape: tuple[int, ...]) -> None:
    """On the calibration data and without a ridge, both are the same least squares."""
    model, batches = seeded(build), data(*shape)
    result, errors = after_repair(model, batches, ratio=0.5)
    (layer,) = (v for v in details(result)["layers"].values() if v["kind"] == "least squares")
    with torch.no_grad():
        out = torch.cat([model(b) for b in batches])
    out = out.movedim(1, -1).flatten(0, -2)
    energy = (out - out.mean(0)).square().sum()
    half = float(errors[len(errors) // 2])
    assert 0.0 < layer["after"] / float(energy) == pytest.approx(half, rel=1e-4)


def test_errors_never_rise_with_the_width() -> None:
    errors = only(scored(seeded(mlp), passes.SecondOrderScore(), data(50, 6)).errors)
    assert errors.shape == (17,)
    assert errors[16] == 0
    assert bool((errors.diff() <= 0).all())


def test_second_order_beats_magnitude_where_channels_are_equal() -> None:
    """Copies of a strong channel look important one by one."""
    model, batches = seeded(mlp), data(50, 6)
    assert isinstance(model.first, nn.Linear)
    with torch.no_grad():
        model.first.weight[8:] = 5 * model.first.weight[:1]
        model.first.bias[8:] = 5 * model.first.bias[0]
    result, errors = after_repair(model, batches, ratio=0.5)
    assert float(errors[8]) < 1e-9
    x = batches[0]
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (3, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def test_heads_have_errors_and_query_widths_have_none() -> None:
    model, batches = seeded(Attention), data(5, 7, 12)
    graph = compiler.capture(model, (batches[0],))
    state = Compilation(graph, [graph.program.flat_inputs((b,), {}) for b in batches])
    found = passes.SecondOrderScore(progress=False).run(state)
    assert state.errors is not None
    assert state.scores is not None
    kinds = {name: graph.dimensions[name].kind for name in graph.prunable}
    assert {kinds[name] for name in state.errors} >= {"head"}
    without = [name for name in kinds if name not in state.errors]
    assert without
    assert found.details["by magnitude"].keys() == set(without)
    assert all("sums over no weight" in why for why in found.details["by magnitude"].values())
    assert state.scores.keys() == kinds.keys()


def test_a_layer_beyond_the_memory_counts_by_its_variances() -> None:
    model, batches = seeded(mlp), data(50, 6, count=1)  # the limit is one on batches too
    graph = compiler.capture(model, (batches[0],))
    state = Compilation(graph, [graph.program.flat_inputs((b,), {}) for b in batches])
    found = passes.SecondOrderScore(memory=16 * 16 * 8).run(state)
    assert found.details["variances only"] == ["second.weight"]
    activation = only(scored(model, passes.ActivationScore(), batches).scores)
    assert torch.equal(only(state.scores).argsort(), activation.argsort())


@pytest.mark.parametrize(
    "build",
    [
        lambda: passes.SecondOrderScore(ridge=-1.0),
        lambda: passes.SecondOrderScore(step=0),
        lambda: passes.TaylorScore(draws=0),
    ],
)
def test_options_out_of_range(build) -> None:
    with pytest.raises(PlanError, match="must be at least"):
        build()


@pytest.mark.parametrize(
    "step", [passes.SecondOrderScore(), passes.ActivationScore(), passes.TaylorScore()]
)
def test_scores_from_data_need_data(step: Pass) -> None:
    with pytest.raises(PlanError, match="calibration data"):
        step.run(Compilation(compiler.capture(seeded(mlp), (data(4, 6)[0],))))
