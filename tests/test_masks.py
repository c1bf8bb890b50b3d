"""Models whose masks of torch.nn.utils.prune were left attached."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from prunec import compiler, passes
from prunec.compiler.capture.untouched import untouched


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.b = nn.Conv2d(16, 8, 3)
        self.c = nn.Linear(8, 4)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def _twice(m: Net) -> None:
    prune.ln_structured(m.a, "weight", 0.25, 2, 0)
    prune.l1_unstructured(m.a, "weight", 0.3)
    prune.l1_unstructured(m.a, "bias", 2)


WAYS = {
    "l1": lambda m: prune.l1_unstructured(m.a, "weight", 0.5),
    "structured": lambda m: prune.ln_structured(m.b, "weight", 0.25, 2, 0),
    "several on one": _twice,
    "global": lambda m: prune.global_unstructured(
        [(m.a, "weight"), (m.b, "weight"), (m.c, "weight")], prune.L1Unstructured, amount=0.4
    ),
    "custom": lambda m: prune.custom_from_mask(m.c, "weight", torch.rand(4, 8) > 0.5),
}


@pytest.fixture
def x():
    return torch.randn(3, 3, 10, 10)


@pytest.mark.parametrize("way", WAYS)
def test_masks_left_attached_are_baked_into_plain_weights(way, x, tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    WAYS[way](model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    hooks = [list(m._forward_pre_hooks.values()) for m in model.modules()]
    expected = model(x)
    result = compiler.compile(model, (x,), target=compiler.Target(params=0.7), measure=False)
    plain = set(Net().state_dict())
    assert type(result.model) is Net
    assert set(result.model.state_dict()) == plain
    assert set(result.graph_module.state_dict()) <= plain
    assert not any(m._forward_pre_hooks for m in result.model.modules())
    assert any("masks" in note for note in result.report.notes)
    assert torch.equal(result.source(x), expected)
    result.export_onnx(tmp_path / "net.onnx")
    names = [i.name for i in onnx.load(tmp_path / "net.onnx").graph.initializer]
    assert not any("mask" in name or "orig" in name for name in names)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert hooks == [list(m._forward_pre_hooks.values()) for m in model.modules()]
    again = result.plan.apply(model)
    assert set(again.state_dict()) == plain


def test_rows_that_a_structured_mask_zeroed_are_found_dead(x):
    model = Net().eval()
    prune.ln_structured(model.a, "weight", 0.5, 2, 0)
    mask = dict(model.named_buffers())["a.weight_mask"][:, 0, 0, 0]
    prune.custom_from_mask(model.a, "bias", mask)
    expected = model(x)
    graph = compiler.capture(model, (x,))
    result = compiler.PassManager([passes.SparseToDense()]).run(graph)
    assert result.model.a.out_channels == 8
    assert torch.allclose(result.model(x), expected, atol=1e-5)


def test_a_weight_shared_with_a_layer_that_has_no_mask_stays_as_it_is_there():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    model, x = Tied().eval(), torch.randn(4, 8)
    prune.l1_unstructured(model.a, "weight", 0.5)
    graph = compiler.capture(model, (x,))
    assert torch.equal(graph.source(x), model(x))
    assert not torch.equal(graph.source.a.weight, graph.source.b.weight)


def test_masks_of_recurrent_weights_are_baked():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.c = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.c(self.r(x)[0])

    model, x = Recurrent().eval(), torch.randn(3, 5, 6)
    prune.l1_unstructured(model.r, "weight_hh_l0", 0.5)
    model(x)
    result = compiler.compile(model, (x,), target=compiler.Target(params=0.8), measure=False)
    assert torch.equal(result.source(x), model(x))
    assert not any("mask" in n or "orig" in n for n in result.model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        weight_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    ],
)
def test_other_reparametrisations_are_captured_beside_masks(wrap, x):
    model = Net().eval()
    wrap(model.b)
    prune.l1_unstructured(model.c, "weight", 0.5)
    model(x)
    state = copy.deepcopy({n: t.detach() for n, t in model.state_dict().items()})
    with untouched(model):
        expected = model(x)
    graph = compiler.capture(model, (x,))
    assert torch.allclose(graph.source(x), expected, atol=1e-6)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
