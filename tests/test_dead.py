"""Sparse models become dense: dead entries are found, their constants folded, nothing else goes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import structures as structures  # fills the table
import torch
import torch.nn.functional as F
from nets import IMAGE, STRUCTURES, TOKENS, captured, conv, floats, lively, module, weight
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from prunec import passes
from prunec.compiler import Graph, PassManager, Result, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import PlanError
from prunec.compiler.ir.terms import UNIT
from prunec.compiler.rewrite.dead import find_dead
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.rewrite.slicing import zero_tensor
from prunec.compiler.verify.oracles import zero_mask
from prunec.compiler.verify.prove import verification_inputs


def densified(model: nn.Module, *args: Tensor) -> Result:
    """The result of SparseToDense alone, whose both models do what the original does."""
    model.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        expected = model(*args)
    result = PassManager([passes.SparseToDense()]).run(capture(model, args))
    assert result.graph_module is not None
    for dense in (result.model, result.graph_module):
        with torch.no_grad():
            torch.testing.assert_close(dense(*args), expected, rtol=1e-5, atol=1e-5)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    return result


def stayed(result: Result) -> dict[str, str]:
    return result.report.passes[-1].details["stayed"]


def folded(result: Result) -> list[str]:
    return result.report.passes[-1].details["folded into"]


@torch.no_grad()
def zero(*tensors: Tensor) -> None:
    for t in tensors:
        t.zero_()


def mlp(**options: Any) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.up(x).relu())

    net = module(forward, up=nn.Linear(8, 12, **options), head=nn.Linear(12, 5))
    lively(net)
    return net


def zero_rows(layer: nn.Module) -> list[int]:
    return (layer.weight == 0).flatten(1).all(1).nonzero().reshape(-1).tolist()  # type: ignore[operator, union-attr]


# torch.nn.utils.prune


@pytest.mark.parametrize("permanent", [False, True], ids=["mask on", "mask removed"])
def test_pruned_rows_go_and_their_bias_is_folded(permanent: bool) -> None:
    net = mlp()
    prune.ln_structured(net.up, "weight", amount=0.5, n=2, dim=0)
    gone = zero_rows(net.up)
    if permanent:
        prune.remove(net.up, "weight")
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": gone}
    assert len(gone) == 6
    assert folded(result) == ["linear_1"]


@pytest.mark.parametrize("permanent", [False, True], ids=["mask on", "mask removed"])
def test_pruned_columns_take_their_producers_along(permanent: bool) -> None:
    net = mlp()
    prune.ln_structured(net.head, "weight", amount=0.25, n=1, dim=1)
    gone = (net.head.weight == 0).all(0).nonzero().reshape(-1).tolist()
    if permanent:
        prune.remove(net.head, "weight")
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": gone}
    assert len(gone) == 3
    assert folded(result) == []


@pytest.mark.parametrize("permanent", [False, True], ids=["mask on", "mask removed"])
def test_pruned_filters_of_a_convolution_go(permanent: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    net = module(
        forward,
        stem=conv(4, 10, bias=False),
        norm=nn.BatchNorm2d(10, affine=False),
        head=conv(10, 5, 1),
    )
    lively(net)
    prune.ln_structured(net.stem, "weight", amount=0.4, n=2, dim=0)
    gone = zero_rows(net.stem)
    if permanent:
        prune.remove(net.stem, "weight")
    assert densified(net, IMAGE).plan.dead == {"stem:channel": gone}


# constants


def normed_convolutions(**options: Any) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.tail(self.head(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))

    net = module(
        forward,
        stem=conv(4, 6),
        norm=nn.BatchNorm2d(6),
        head=nn.Conv2d(6, 7, 3, **options),
        tail=nn.Linear(7, 5),
    )
    lively(net)
    with torch.no_grad():
        net.norm.weight[[1, 4]] = 0
        net.norm.bias[[1, 4]] = torch.tensor([0.7, -0.7])
        net.head.weight[3] = 0
        net.head.bias[3] = -1.0
    return net


def test_a_zero_gamma_leaves_its_beta_which_folds_into_an_unpadded_convolution() -> None:
    result = densified(normed_convolutions(), IMAGE)
    assert result.plan.dead == {"stem:channel": [1, 4], "head:channel": [3]}
    assert folded(result) == ["conv2d_1"]


def test_a_constant_under_zero_padding_stays_and_is_reported() -> None:
    result = densified(normed_convolutions(padding=1), IMAGE)
    assert result.plan.dead == {"stem:channel": [4], "head:channel": [3]}
    assert "1 constant entries stay" in stayed(result)["stem:channel"]
    assert "conv2d_1" in stayed(result)["stem:channel"]
    assert any("stem:channel" in note for note in result.report.notes)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_constant_padded_by_itself_folds(mode: str) -> None:
    result = densified(normed_convolutions(padding=1, padding_mode=mode), IMAGE)
    assert result.plan.dead["stem:channel"] == [1, 4]


def test_a_zero_gamma_before_a_linear_layer_folds_into_its_bias() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    net = module(forward, stem=nn.Linear(8, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(6, 5))
    lively(net)
    with torch.no_grad():
        net.norm.weight[2], net.norm.bias[2] = 0, 0.9
    result = densified(net, floats(3, 8))
    assert result.plan.dead == {"stem:hidden": [2]}
    assert folded(result) == ["linear_1"]


def test_a_consumer_without_a_bias_gets_one() -> None:
    net = mlp()
    net.head = nn.Linear(12, 5, bias=False)
    zero(net.up.weight[3])
    with torch.no_grad():
        net.up.bias[3] = 0.5
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": [3]}
    assert {n: p.shape for n, p in result.model.named_parameters()} == {
        "up.weight": (11, 8),
        "up.bias": (11,),
        "head.weight": (5, 11),
        "head.bias": (5,),
    }


def test_the_half_that_a_sigmoid_makes_of_zero_is_folded() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.up(x).sigmoid())

    net = module(forward, up=nn.Linear(8, 12), head=nn.Linear(12, 5))
    zero(net.up.weight[4:6], net.up.bias[4:6])
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": [4, 5]}
    assert folded(result) == ["linear_1"]


def test_a_constant_folds_through_a_flatten_and_a_pool() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.stem(x).relu(), 2).flatten(1))

    net = module(forward, stem=conv(4, 6), head=nn.Linear(54, 5))
    zero(net.stem.weight[2])
    with torch.no_grad():
        net.stem.bias[2] = 0.4
    assert densified(net, IMAGE).plan.dead == {"stem:channel": [2]}


def test_a_weight_on_the_left_folds_constants_into_rows() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second @ (self.first @ x + self.shift).relu()

    net = module(forward, first=weight(6, 7), shift=weight(6, 1), second=weight(5, 6))
    zero(net.first[1])
    with torch.no_grad():
        net.shift[1] = 0.6
    result = densified(net, TOKENS)
    assert list(result.plan.dead.values()) == [[1]]
    assert folded(result) == ["matmul_1"]


def test_an_unbatched_convolution_folds_along_its_channels() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu())

    net = module(forward, stem=nn.Conv1d(4, 6, 3), head=nn.Conv1d(6, 5, 3))
    zero(net.stem.weight[2])
    with torch.no_grad():
        net.stem.bias[2] = 0.4
    assert densified(net, floats(4, 9)).plan.dead == {"stem:channel": [2]}


# transformers


def block() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 3, 4).transpose(1, 2) for t in self.qkv(x).split(12, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, 12))
        return x + self.down(F.gelu(self.up(x)))

    net = module(
        forward, qkv=Conv1D(36, 8), out=Conv1D(8, 12), up=Conv1D(10, 8), down=Conv1D(8, 10)
    )
    lively(net)
    return net


def test_hidden_units_of_gpt2_layers_go_and_their_constants_fold() -> None:
    net = block()
    zero(net.up.weight[:, 2], net.up.weight[:, 7], net.up.bias[2])
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": [2, 7]}
    assert folded(result) == ["addmm_3"]


def test_a_head_whose_values_are_zero_goes() -> None:
    net = block()
    zero(net.qkv.weight[:, 28:32], net.qkv.bias[28:32])
    assert densified(net, TOKENS).plan.dead == {"qkv:head": [1]}


def test_a_head_that_nothing_reads_goes() -> None:
    net = block()
    zero(net.out.weight[8:12])
    assert densified(net, TOKENS).plan.dead == {"qkv:head": [2]}


def test_a_head_whose_queries_are_zero_stays() -> None:
    net = block()
    zero(net.qkv.weight[:, 0:4], net.qkv.bias[0:4])
    with pytest.raises(PlanError, match="nothing to remove"):
        densified(net, TOKENS)


def test_a_head_dim_that_queries_leave_zero_goes() -> None:
    net = block()
    for h in range(3):
        zero(net.qkv.weight[:, 4 * h + 1], net.qkv.bias[4 * h + 1])
    assert densified(net, TOKENS).plan.dead == {"qkv:head-dim": [1]}


def test_grouped_heads_with_zero_values_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, -1, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))

    net = module(
        forward,
        q=nn.Linear(8, 24),
        k=nn.Linear(8, 8),
        v=nn.Linear(8, 8, bias=False),
        out=nn.Linear(24, 5),
    )
    zero(net.v.weight[4:])
    assert densified(net, TOKENS).plan.dead == {"q:kv-head": [1]}


# what stays


def test_the_last_entry_is_never_removed() -> None:
    net = mlp()
    zero(net.up.weight)
    result = densified(net, TOKENS)
    assert len(result.plan.dead["up:hidden"]) == 11


def test_zero_channels_under_a_norm_stay_and_are_reported() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head(self.up(x).relu())

    net = module(
        forward,
        stem=nn.Linear(8, 6),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 9),
        head=nn.Linear(9, 5),
    )
    zero(net.stem.weight[2], net.stem.bias[2], net.norm.weight[2], net.norm.bias[2])
    zero(net.up.weight[:, 2], net.up.weight[4], net.up.bias[4])
    result = densified(net, TOKENS)
    assert result.plan.dead == {"up:hidden": [4]}
    assert "layer_norm takes statistics over it" in stayed(result)["stem:hidden"]


def test_a_model_with_nothing_dead_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing to remove"):
        densified(mlp(), TOKENS)


def test_dead_entries_are_left_when_not_asked_for() -> None:
    net = mlp()
    zero(net.up.weight[:6], net.up.bias[:6])
    with pytest.raises(PlanError, match="nothing to remove"):
        PassManager([passes.SparseToDense(dead=False)]).run(capture(net, (TOKENS,)))


# chains and side effects


def test_what_only_feeds_dead_entries_is_dead_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())

    net = module(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 7), c=nn.Linear(7, 5))
    zero(net.c.weight[:, 2])
    with torch.no_grad():
        net.b.weight[[i for i in range(7) if i != 2], 4] = 0
    assert densified(net, TOKENS).plan.dead == {"a:hidden": [4], "b:hidden": [2]}


def test_planned_and_dead_entries_go_together() -> None:
    net = mlp()
    zero(net.up.weight[:3], net.up.bias[:3])
    with torch.no_grad():
        net.up.weight[3:] += 1
    graph = capture(net, (TOKENS,))
    pipeline = [
        passes.MagnitudeScore(),
        passes.PruneChannels(ratio=2 / 12),
        passes.SparseToDense(),
    ]
    result = PassManager(pipeline).run(graph)
    assert [*result.plan.dead["up:hidden"]] == [
        i for i in range(3) if i in result.plan.kept["up:hidden"]
    ]
    assert result.verify().passed


def test_in_place_activations_do_not_hide_dead_channels() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = F.relu_(x)
        return self.head(x)

    net = module(forward, stem=conv(4, 6), norm=nn.BatchNorm2d(6), head=conv(6, 5))
    lively(net)
    zero(net.norm.weight[3], net.norm.bias[3])
    assert densified(net, IMAGE).plan.dead == {"stem:channel": [3]}


def test_a_view_taken_before_a_write_is_no_longer_known() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        canvas = torch.zeros(x.shape[0], 7, 6)
        early = canvas.view(-1, 7, 6)
        canvas[:, :, :4] = self.a(x)
        return self.head(early + self.b(x)) + self.tail(self.c(x).relu())

    net = module(
        forward,
        a=nn.Linear(8, 4),
        b=nn.Linear(8, 6),
        head=nn.Linear(6, 5),
        c=nn.Linear(8, 9),
        tail=nn.Linear(9, 5),
    )
    zero(net.b.weight, net.b.bias, net.c.weight[2])
    assert densified(net, TOKENS).plan.dead == {"c:hidden": [2]}


def test_buffers_that_forward_writes_are_not_written_by_a_compile() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls.add_(1)
        y = self.up(x)
        self.mean.lerp_(y.mean((0, 1)).detach(), 0.1)
        return self.head(y - self.mean)

    net = module(
        forward,
        up=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
        calls=torch.zeros(()),
        mean=torch.zeros(9),
    )
    zero(net.head.weight[:, 3])
    PassManager([passes.SparseToDense()]).run(capture(net, (TOKENS,)))
    assert net.calls == 0
    assert torch.equal(net.mean, torch.zeros(9))


def test_a_constant_that_dropout_scales_is_not_folded() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.up(x).relu(), 0.5, training=True))

    net = module(forward, up=nn.Linear(8, 12), head=nn.Linear(12, 5))
    zero(net.up.weight[:2])
    with torch.no_grad():
        net.up.bias[:2] = torch.tensor([0.8, -0.8])
    dead = find_dead(capture(net, (TOKENS,)), {})
    assert [gone.tolist() for gone in dead.removed.values()] == [[1]]


# every structure


def with_zero_producers(graph: Graph) -> Graph:
    """The graph with half of every exact dimension zeroed where it is produced, not where it is
    read."""
    generator = torch.Generator().manual_seed(5)
    kept = {}
    for d in graph.prunable.values():
        if d.exact:
            count = max(d.minimum, d.size // 2)
            kept[d.var] = torch.randperm(d.size, generator=generator)[:count].sort().values
    read = {
        (n.target, axis % len(graph.inference.terms[n]))
        for sink in graph.inference.sinks
        for n, axis in sink.operands
        if n.op == "get_attr"
    }
    tensors = {}
    for name, t in graph.program.tensors.items():
        terms = enumerate(graph.inference.tensors[name])
        produced = [UNIT if (name, axis) in read else term for axis, term in terms]
        tensors[name] = zero_tensor(t, produced, kept) if t.is_floating_point() else t
    return Graph(dataclasses.replace(graph.program, tensors=tensors))


@pytest.mark.parametrize("name", [n for n, s in STRUCTURES.items() if s.finds])
def test_removing_what_is_dead_keeps_the_function_of_every_structure(name: str) -> None:
    graph = with_zero_producers(captured(name))
    dead = find_dead(graph, {})
    sizes = {v: torch.arange(v.size) for v in dead.removed}
    kept = {v: sizes[v][~torch.isin(sizes[v], gone)] for v, gone in dead.removed.items()}
    dense = rewrite(graph, kept, dead.folds)
    assert zero_mask(graph, dense, {}, verification_inputs(Compilation(graph))).passed
