"""Scales that modules derive from a head width at run time: moved into weights when it shrinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_trial import Trial
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler.emit.attention_scale import ScaleDecision, apply_scales, scale_decisions
from prunec.compiler.rewrite.slicing import Kept

X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(3))


def rotary(x: Tensor) -> Tensor:
    width, length = x.shape[-1], x.shape[-2]
    angle = torch.arange(length)[:, None] * torch.arange(width // 2).float().exp2().neg()
    angle = torch.cat([angle, angle], -1)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """The parts that subclasses attend with; each derives its scale from what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.into = nn.Linear(10, 24)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.q_norm = nn.LayerNorm(8)
        self.proj, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def attend(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        out = self.attend(h).transpose(1, 2).flatten(2)
        return self.head(F.gelu(self.proj(out)))

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(layer(h), self.heads) for layer in (self.q, self.k, self.v))
        return q, k, v


class DefaultScale(Attention):
    def attend(self, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.split(h))


class Rotary(Attention):
    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        return F.scaled_dot_product_attention(rotary(q), k * 0.7, v)


class FusedProjection(Attention):
    """q, k and v are slices of one matrix: only q's rows may be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def attend(self, h: Tensor) -> Tensor:
        qkv = self.qkv(h).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :])


class Divided(Attention):
    """The scale is a division of the scores, a norm stands before them: scale its weight."""

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        scores = self.q_norm(q) @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return scores.softmax(-1) @ v


class QueryReadTwice(Attention):
    """The query is also added to the result: the key has to take the factor."""

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        return F.scaled_dot_product_attention(q, k, v + q)


class FourthRoots(Attention):
    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        root = q.shape[-1] ** 0.25
        return ((q / root) @ (k / root).transpose(-2, -1)).softmax(-1) @ v


class Bent(Attention):
    """Query and key both pass a nonlinearity: no weight can take the factor."""

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = self.split(h)
        return F.scaled_dot_product_attention(F.gelu(q), F.gelu(k), v)


class KeptScale(Attention):
    """The scale is an attribute of the module: it stays, and so do the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 8**-0.5

    def attend(self, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.split(h), scale=self.scale)


class HeadWidths(Trial):
    def choose(self, kinds: Collection[str], keep: Callable[[int], Tensor]) -> Kept:
        found = [d for d in self.graph.prunable.values() if d.kind == "head-dim"]
        assert found
        return {d.var: torch.arange(d.size // 2) for d in found}


def trial(model: type[Attention]) -> HeadWidths:
    torch.manual_seed(4)
    return HeadWidths(model(), (X,))


@pytest.mark.parametrize(
    ("model", "scaled"),
    [
        (DefaultScale, {"q.weight", "q.bias"}),
        (Rotary, {"q.weight", "q.bias"}),
        (FusedProjection, {"qkv.weight", "qkv.bias"}),
        (Divided, {"q_norm.weight", "q_norm.bias"}),
        (QueryReadTwice, {"k.weight", "k.bias"}),
        (FourthRoots, {"q.weight", "q.bias", "k.weight", "k.bias"}),
    ],
)
def test_derived_scale_moves_into_the_weights_before_it(
    model: type[Attention], scaled: set[str]
) -> None:
    done = trial(model)
    assert set(done.result.scales) == scaled
    for name in scaled:
        path, _, leaf = name.partition(".")
        assert getattr(getattr(done.module, path), leaf) is done.dense.tensors[name]
    done.check_replay()


def test_only_the_querys_rows_of_a_fused_projection_are_scaled() -> None:
    factor = trial(FusedProjection).result.scales["qkv.weight"]
    assert factor.shape == (36, 1)
    rows = factor.reshape(3, 3, 4)
    assert torch.allclose(rows[:, 0], torch.tensor(math.sqrt(0.5)))
    assert torch.equal(rows[:, 1:], torch.ones(3, 2, 4))


def test_scale_that_is_an_attribute_changes_no_weights() -> None:
    done = trial(KeptScale)
    assert done.module.scale == 8**-0.5
    assert done.result.scales == {}


def test_scale_that_no_weight_can_take_is_refused() -> None:
    done = trial(Bent)
    assert done.result.module is None
    assert "differs from the graph" in done.result.reason


def test_undo_gives_the_program_back() -> None:
    done = trial(Bent)
    graph = done.graph
    widths = {var: len(entries) for var, entries in done.kept.items()}
    assert scale_decisions(graph, done.dense, widths, done.model) == []
    site = next(n for n in done.dense.graph.nodes if "scaled_dot" in n.name)
    before: Any = (site.args, dict(site.kwargs))
    weight = done.dense.tensors["q.weight"]
    new = nn.Parameter(weight * 2)
    decision = ScaleDecision("", ({},), weights={"q.weight": new})
    apply_scales(done.dense, decision)()
    assert done.dense.tensors["q.weight"] is weight
    assert (site.args, dict(site.kwargs)) == before


def test_plan_with_scales_applies_to_a_fresh_copy() -> None:
    torch.manual_seed(5)
    model = DefaultScale().eval()
    result = compiler.PassManager(
        [
            passes.MagnitudeScore(),
            passes.PruneChannels(ratio=0.5, include="*:head-dim*"),
            passes.SparseToDense(),
        ]
    ).run(compiler.capture(model, (X,)))
    assert type(result.model) is DefaultScale
    assert result.verify().passed
    again = compiler.Plan.from_json(result.plan.to_json()).apply(model)
    assert torch.allclose(again(X), result.model(X), atol=1e-6)
    assert again.q.out_features == 12
