"""Single weights set to zero: which ones, what follows for the rewrite, and that they stay zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Result
from prunec.compiler.errors import PlanError
from prunec.passes.distillation.masks import FixedMask
from prunec.passes.sparsify_weights import smallest, two_of_four

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def run(*steps: Any, model: nn.Module | None = None) -> Result:
    return compiler.PassManager(steps).run(compiler.capture(model or net(), (X,)), [X])


def shares(model: nn.Module) -> list[float]:
    return [float((m.weight == 0).double().mean()) for m in model if isinstance(m, nn.Linear)]


def test_the_smallest_go_from_each_tensor_or_from_all() -> None:
    weights = {"a": torch.tensor([[1.0, -2.0], [3.0, -4.0]]), "b": torch.tensor([[10.0, 0.5]])}
    each = smallest(weights, 0.5, per_tensor=True)
    assert each["a"].tolist() == [[False, False], [True, True]]
    assert each["b"].tolist() == [[True, False]]
    of_all = smallest(weights, 0.5, per_tensor=False)
    assert of_all["a"].tolist() == [[False, False], [True, True]]
    assert of_all["b"].tolist() == [[True, False]]
    assert smallest(weights, 1 / 6, per_tensor=False)["a"].all()


def test_two_of_four_inputs_stay() -> None:
    weight = torch.tensor([[1.0, -5.0, 3.0, 2.0, 0.0, 0.0, -1.0, 4.0]])
    assert two_of_four(weight, 0).tolist() == [[False, True, True, False, False, False, True, True]]
    assert torch.equal(two_of_four(weight.T.contiguous(), 1), two_of_four(weight, 0).T)
    convolution = torch.randn(6, 4, 3, 3)
    kept = two_of_four(convolution, 0)
    assert kept.shape == convolution.shape
    assert kept.reshape(6, 9, 4).sum(-1).eq(2).all()


def test_the_model_given_is_not_touched() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    result = run(passes.SparsifyWeights(amount=0.25), model=model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert shares(result.model) == pytest.approx([0.25] * 3, abs=0.02)
    assert any("are zero; dense kernels take the same time" in n for n in result.report.notes)


def test_what_became_removable_is_removed() -> None:
    """Weights of entries that are nearly zero all go, and the rewrite takes the entries out."""
    model = net()
    with torch.no_grad():
        model[0].weight[::2] *= 1e-3
        model[0].bias[::2] = 0
    result = run(
        passes.SparsifyWeights(amount=0.5, include="0.weight"), passes.SparseToDense(), model=model
    )
    assert result.model[0].weight.shape == (8, 8)
    sparse = run(passes.SparsifyWeights(amount=0.5, include="0.weight"), model=model).model
    torch.testing.assert_close(result.model(X), sparse(X), rtol=1e-5, atol=1e-6)
    assert result.report.after.params < result.report.before.params


def test_nothing_removable_is_no_error_after_sparsifying() -> None:
    result = run(passes.SparsifyWeights(amount=0.1), passes.SparseToDense())
    assert result.report.after.params == result.report.before.params
    assert shares(result.model) == pytest.approx([0.1] * 3, abs=0.02)


@pytest.mark.parametrize("first", [True, False])
def test_zeros_stay_through_cutting_and_training(first: bool) -> None:
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.25), passes.SparseToDense()]
    sparsify = passes.SparsifyWeights(amount=0.5)
    train = passes.Distill([X], steps=5, learning_rate=1e-2, progress=False)
    steps = [sparsify, *cut] if first else [*cut, sparsify]
    before = run(*steps)
    after = run(*steps, train)
    for old, new in zip(before.model, after.model, strict=True):
        if isinstance(old, nn.Linear):
            assert new.weight[old.weight == 0].eq(0).all()
            assert not torch.equal(old.weight, new.weight)
            assert float((new.weight == 0).double().mean()) > 0.3


def test_zeros_stay_in_memory_that_is_lent() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    mask = torch.tensor([[True, False, True]] * 2)
    held = FixedMask([(weight, mask)])
    weight.data = torch.full((2, 3), 2.0)  # as `on_device` moves it
    held.hold(1.0)
    assert weight.tolist() == [[2, 0, 2]] * 2


def test_the_pattern_is_kept_to_where_it_fits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))
    result = run(passes.SparsifyWeights(pattern="2:4"), model=model)
    details = result.report.passes[0].details
    assert details["zeros"] == {"0.weight": 0.5}
    assert details["left alone"] == {"2.weight": "10 inputs are no multiple of 4"}
    assert (result.model[0].weight.reshape(10, 2, 4) != 0).sum(-1).le(2).all()


def test_repair_does_not_fill_the_zeros() -> None:
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.25), passes.SparseToDense()]
    with pytest.raises(PlanError, match="put it before"):
        run(*cut, passes.SparsifyWeights(), passes.Reconstruct())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 1.0}, "share set to zero"),
        ({"scope": "model"}, "'layer' or 'global'"),
        ({"pattern": "1:2"}, "pattern is '2:4'"),
        ({"include": "nothing"}, "'nothing' fits none of the weights"),
        ({"exclude": ["0.*", "none.*"]}, r"'none\.\*' fits none of the weights"),
        ({"exclude": "*"}, "found no weight"),
        ({"amount": 1e-6}, "sets nothing to zero"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        run(passes.SparsifyWeights(**options))


def test_in_a_graph_of_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    images: Tensor = torch.randn(2, 1, 8, 8)
    graph = compiler.capture(model, (images,))
    result = compiler.PassManager([passes.SparsifyWeights(0.5, "global")]).run(graph)
    zeros = sum(int((m.weight == 0).sum()) for m in result.model if isinstance(m, nn.Conv2d))
    assert zeros == round(0.5 * (8 * 9 + 4 * 8 * 9))
