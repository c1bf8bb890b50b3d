"""The graph back end: real leaf modules, the model's signature, copies and pickles."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.compiler.capture.capture import capture
from prunec.compiler.emit.leaf_modules import emit_graph_module, leaf_specs
from prunec.compiler.inference.graph import Graph
from prunec.compiler.rewrite.folds import Fold
from prunec.compiler.rewrite.rewrite import rewrite


class ConvNet(nn.Module):
    """Every folded layer once; the same block called twice; a residual sum; depthwise, grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16, eps=1e-3)
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", groups=16, bias=False)
        self.grouped = nn.Conv2d(16, 32, 1, groups=4)
        self.group_norm = nn.GroupNorm(4, 32)
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.activation = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(8, 24)
        self.layer_norm = nn.LayerNorm(24)
        self.rms_norm = nn.RMSNorm(24, eps=1e-6)
        self.head = nn.Linear(24, 5, bias=False)
        self.register_buffer("scale", torch.rand(8), persistent=False)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor, gain: Tensor | None = None, flag: bool = True) -> dict:
        h = self.activation(self.norm(self.stem(x)))
        h = self.norm(h + self.depthwise(h))
        h = self.up(F.relu(self.group_norm(self.grouped(h))))
        h = self.drop(h.mean((2, 3)) * self.scale * torch.linspace(0.5, 1.0, 8))
        h = self.rms_norm(self.layer_norm(torch.tanh(self.hidden(h))))
        out = self.head(self.drop(h))
        return {"out": out if gain is None else out * gain, "features": h}


class TiedText(nn.Module):
    """An embedding tied to the output layer, and a layer that is not standard."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        self.scaled = Scaled(16, 16)
        self.out = nn.Linear(16, 20)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.relu(self.scaled(self.embed(ids))))


class Scaled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def halved(graph: Graph) -> dict:
    """Half of the entries of every prunable dimension, one per product."""
    kept, done = {}, set()
    for d in graph.prunable.values():
        if done.isdisjoint(d.partners):
            done.add(d.name)
            kept[d.var] = torch.arange(d.size)[:: 2 if d.size >= 2 * d.minimum else 1]
    return kept


@pytest.fixture(scope="module")
def conv() -> tuple[ConvNet, Graph, fx.GraphModule]:
    torch.manual_seed(0)
    model = ConvNet().eval()
    graph = capture(model, (torch.randn(2, 3, 8, 8),), kwargs={"flag": False}, outputs="out")
    dense = rewrite(graph, halved(graph))
    return model, graph, emit_graph_module(dense, leaf_specs(model, graph.program))


def test_leaves_are_real_modules_with_the_cut_sizes(conv) -> None:
    _, _, module = conv
    expected = {
        "stem": nn.Conv2d,
        "norm": nn.BatchNorm2d,
        "depthwise": nn.Conv2d,
        "grouped": nn.Conv2d,
        "group_norm": nn.GroupNorm,
        "up": nn.ConvTranspose2d,
        "activation": nn.ReLU,
        "drop": nn.Dropout,
        "hidden": nn.Linear,
        "layer_norm": nn.LayerNorm,
        "rms_norm": nn.RMSNorm,
        "head": nn.Linear,
    }
    assert {path: type(module.get_submodule(path)) for path in expected} == expected
    assert module.stem.stride == (2, 2)
    assert module.stem.out_channels == module.norm.num_features == 8
    assert module.norm.eps == 1e-3
    depthwise = module.depthwise
    assert (depthwise.groups, depthwise.in_channels, depthwise.padding) == (8, 8, "same")
    assert module.grouped.out_channels == module.group_norm.num_channels
    assert module.grouped.out_channels == module.up.in_channels < 32
    assert module.group_norm.num_groups == module.grouped.groups
    assert module.layer_norm.normalized_shape == module.rms_norm.normalized_shape == (12,)
    assert (module.hidden.in_features, module.hidden.out_features) == (4, 12)
    ops = {str(n.target) for n in module.graph.nodes if n.op == "call_function"}
    assert not {op for op in ops if "linear.default" in op or "conv" in op or "norm" in op}
    assert module.training is False


def test_nothing_pruned_is_the_original_exactly() -> None:
    torch.manual_seed(0)
    model = ConvNet().eval()
    x, gain = torch.randn(2, 3, 8, 8), torch.rand(5)
    graph = capture(model, (x,), kwargs={"flag": False, "gain": gain})
    module = emit_graph_module(rewrite(graph, {}), leaf_specs(model, graph.program))
    fresh, other = torch.randn(3, 3, 8, 8), torch.rand(5)
    expected = model(fresh, other)
    for found in (
        module(fresh, other),
        module(fresh, gain=other),
        module(fresh, flag=False, gain=other),
        module(gain=other, x=fresh),
        copy.deepcopy(module)(fresh, other, False),
    ):
        assert set(found) == {"out", "features"}
        assert torch.equal(found["out"], expected["out"])


def test_state_dict_keys_are_the_originals(conv) -> None:
    model, _, module = conv
    assert set(module.state_dict()) == set(model.state_dict())
    assert "scale" in dict(module.named_buffers())  # non-persistent, and so are lifted constants


def test_parameters_are_the_programs_own() -> None:
    model = ConvNet().eval()
    model.stem.weight.requires_grad_(False)
    graph = capture(model, (torch.randn(2, 3, 8, 8),), outputs="out")
    dense = rewrite(graph, halved(graph))
    module = emit_graph_module(dense, leaf_specs(model, graph.program))
    for name, parameter in module.named_parameters():
        assert parameter is dense.tensors[name]
    assert not module.stem.weight.requires_grad
    assert module.head.weight.requires_grad


def test_train_mode_drops_and_uses_batch_statistics(conv) -> None:
    _, _, shared = conv
    module, x = copy.deepcopy(shared), torch.randn(4, 3, 8, 8)
    reference = module(x)
    module.train()
    torch.manual_seed(1)
    first, mean = module(x), module.norm.running_mean.clone()
    assert not torch.equal(first, module(x))  # dropout
    assert not torch.equal(mean, module.norm.running_mean)
    assert module.norm.num_batches_tracked == 4  # called twice each time
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert not torch.equal(module.eval()(x), reference)  # the statistics have moved
    assert torch.equal(shared(x), reference)  # of the copy only


def test_train_mode_equals_the_original_in_train_mode() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    model.drop.p = 0.0
    x = torch.randn(4, 3, 8, 8)
    for train_at_capture in (False, True):
        graph = capture(model.train(train_at_capture), (x,), outputs="out")
        module = emit_graph_module(rewrite(graph, {}), leaf_specs(model, graph.program))
        assert module.training is train_at_capture
        own = copy.deepcopy(model).train()
        torch.testing.assert_close(module.train()(x), own(x)["out"])
        torch.testing.assert_close(module.norm.running_var, own.norm.running_var)
        assert module.norm.num_batches_tracked == own.norm.num_batches_tracked == 2
        own.eval(), module.eval()
        torch.testing.assert_close(module(x), own(x)["out"])


def test_copies_and_pickles(conv) -> None:
    _, _, module = conv
    x = torch.randn(2, 3, 8, 8)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), loaded, copy.deepcopy(loaded)):
        assert torch.equal(other(x), module(x))
        assert set(other.state_dict()) == set(module.state_dict())
        assert other.stem.weight is not module.stem.weight
        assert [n.name for n in other.graph.nodes] == [n.name for n in module.graph.nodes]
        assert other(x, flag=False).shape == (2, 5)


def test_tied_weights_stay_tied_under_both_names() -> None:
    model = TiedText().eval()
    ids = torch.randint(0, 20, (2, 6))
    graph = capture(model, (ids,))
    module = emit_graph_module(rewrite(graph, halved(graph)), leaf_specs(model, graph.program))
    assert module.out.weight is module.embed.weight
    assert set(module.state_dict()) == set(model.state_dict())
    assert len(list(module.parameters())) == len(list(model.parameters()))
    assert (module.embed.embedding_dim, module.embed.padding_idx) == (8, 0)
    twin = copy.deepcopy(module)
    assert twin.out.weight is twin.embed.weight is not module.embed.weight


def test_a_layer_with_its_own_forward_is_not_folded() -> None:
    model = TiedText().eval()
    ids = torch.randint(0, 20, (2, 6))
    graph = capture(model, (ids,))
    module = emit_graph_module(rewrite(graph, {}), leaf_specs(model, graph.program))
    assert type(module.scaled) is nn.Module
    assert torch.equal(module(ids), model(ids))


def test_one_module_under_two_names_is_one_leaf() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.BatchNorm1d(6)])
            self.first, self.norm = self.layers

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Twice().eval(), torch.randn(3, 6)
    graph = capture(model, (x,))
    module = emit_graph_module(rewrite(graph, {}), leaf_specs(model, graph.program))
    assert module.get_submodule("layers.1") is module.norm
    assert set(module.state_dict()) == set(model.state_dict())
    module.train()(x), model.train()(x)
    torch.testing.assert_close(module.norm.running_mean, model.norm.running_mean)


def test_a_folded_constant_becomes_the_leafs_bias() -> None:
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    graph = capture(model, (x,), outputs="out")
    weight = next(n for n in graph.program.graph.nodes if n.target == "head.weight")
    node = next(iter(weight.users))
    vector = torch.randn(5)
    dense = rewrite(graph, {}, [Fold(node.name, 1, vector)])
    module = emit_graph_module(dense, leaf_specs(model, graph.program))
    assert isinstance(module.head, nn.Linear)
    assert module.head.bias is dense.tensors["head.bias"]
    torch.testing.assert_close(module(x), model(x)["out"] + vector)


def test_hooks_on_leaves_fire(conv) -> None:
    _, _, module = conv
    seen = []
    handle = module.hidden.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    module(torch.randn(3, 3, 8, 8))
    handle.remove()
    assert seen == [(3, 12)]


def test_without_specs_the_graph_still_runs() -> None:
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    graph = capture(model, (x,), outputs="out")
    module = emit_graph_module(rewrite(graph, {}), {})
    assert not any(n.op == "call_module" for n in module.graph.nodes)
    assert torch.equal(module(x), model(x)["out"])


def test_it_can_be_exported_again(conv) -> None:
    _, _, module = conv
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(module, (x,), {"flag": False})
    torch.testing.assert_close(exported.module()(x, flag=False), module(x))
    paths = {
        str(list(n.meta["nn_module_stack"].values())[-1][0])
        for n in exported.graph.nodes
        if n.meta.get("nn_module_stack")
    }
    assert {"stem", "hidden", "norm"} <= paths
