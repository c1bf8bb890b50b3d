"""Blocks as timm writes them keep their class; where a plan does not fit, the report says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets_timm import (
    IMAGES,
    BeitAttention,
    ChannelAttention,
    ConvNext,
    TalkingHeads,
    VisionTransformer,
    VitAttention,
)
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Result, Target


def shaken(model: nn.Module) -> Any:
    """Weights at which every part of the model counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / max(p[0].numel(), 4) ** 0.5)
    return model.eval()


def pruned(model: nn.Module, x: Tensor, **options: Any) -> Result:
    graph = compiler.capture(model, (x,))
    steps = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5, **options)]
    return compiler.PassManager([*steps, passes.SparseToDense()]).run(graph)


def reason(result: Result) -> str:
    return next(note for note in result.report.notes if "module back end does not hold" in note)


@pytest.mark.parametrize("attention", [VitAttention, BeitAttention, TalkingHeads, ChannelAttention])
def test_vision_transformers_of_timm_keep_their_class(attention: type[nn.Module]) -> None:
    model = shaken(VisionTransformer(attention))
    result = compiler.compile(model, IMAGES, target=Target(width=0.5), measure=False)
    assert type(result.model) is VisionTransformer
    assert result.model.blocks[1].attn.num_heads == 2
    assert result.model.patch.out_channels == 16


def test_convnext_of_timm_keeps_its_class() -> None:
    result = compiler.compile(shaken(ConvNext()), IMAGES, target=Target(width=0.5), measure=False)
    assert type(result.model) is ConvNext
    assert result.model.blocks[0].conv_dw.groups == 8


def test_width_that_is_read_for_heads_times_head_width_is_named() -> None:
    result = pruned(shaken(VisionTransformer()), IMAGES)
    assert result.model is result.graph_module
    assert "without its residual dimensions in the plan it holds" in reason(result)
    again = pruned(shaken(VisionTransformer()), IMAGES, exclude="residual")
    assert type(again.model) is VisionTransformer


class Attending(nn.Module):
    """An nn.MultiheadAttention, whose heads make up the width it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(10, 32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        return self.head(self.norm(h + self.attention(h, h, h, need_weights=False)[0]))


def heads_halved(model: nn.Module, x: Tensor, **also: Any) -> Result:
    graph = compiler.capture(model, (x,))
    steps: list[Any] = [passes.MagnitudeScore(), passes.PruneHeads(ratio=0.5)]
    steps += [passes.PruneChannels(ratio=0.5, **also)] if also else []
    return compiler.PassManager([*steps, passes.SparseToDense()]).run(graph)


@pytest.mark.parametrize("cls", [VisionTransformer, Attending])
def test_width_that_heads_have_to_fit_is_named(cls: type[nn.Module]) -> None:
    x = IMAGES if cls is VisionTransformer else torch.randn(2, 6, 10)
    result = heads_halved(shaken(cls()), x)
    assert result.model is result.graph_module
    assert "cut to 16 (heads x head width" in reason(result)
    again = heads_halved(shaken(cls()), x, include="residual")
    assert type(again.model) is cls


class Literal(nn.Module):
    """One of two hidden widths is written as a number into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(h.reshape(-1, 16))


def test_dimension_on_the_line_that_raises_is_named() -> None:
    x = torch.randn(2, 6)
    result = pruned(shaken(Literal()), x)
    assert "without 'two:hidden' in the plan" in reason(result)
    assert "exclude=['two:hidden'] keeps the class" in reason(result)
    again = pruned(shaken(Literal()), x, exclude=["two:hidden"])
    assert type(again.model) is Literal
    assert again.model.one.out_features == 6


class Ramp(nn.Module):
    """One width has a table made from its size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.one(x) + torch.arange(12.0))
        return self.head(torch.relu(self.two(h)))


def test_dimension_of_generated_values_is_named() -> None:
    result = pruned(shaken(Ramp()), torch.randn(2, 6))
    assert "makes values from a size" in reason(result)
    assert "without 'one:hidden' in the plan it holds" in reason(result)


class Config:
    """What modules read of a transformers configuration."""

    def __init__(self) -> None:
        self.hidden_sizes, self.depths = [8, 16], [1, 1]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class Stages(nn.Module):
    """Segformer's way: forward reads the last of the configuration's widths."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)
        self.inner, self.outer = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = self.two(x + torch.relu(self.inner(x)))
        x = (x + torch.relu(self.outer(x))).permute(0, 2, 3, 1)
        return self.head(x.reshape(x.shape[0], -1, self.config.hidden_sizes[-1]).mean(1))


def test_widths_of_stages_in_a_configuration_follow() -> None:
    result = pruned(shaken(Stages()), IMAGES)
    assert type(result.model) is Stages
    assert result.model.config.hidden_sizes == [4, 8]
    assert result.model.config.depths == [1, 1]
    assert result.source.config.hidden_sizes == [8, 16]


class Pooling(nn.Module):
    """Siglip's head: a learned query attends, and the result is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.probe = nn.Linear(6, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        probe = self.probe.repeat(len(x), 1, 1)
        return self.attention(probe, h, h)[0][:, 0]


def test_multihead_attention_may_write_wider_than_it_reads() -> None:
    model = shaken(Pooling())
    result = compiler.compile(model, torch.randn(2, 5, 6), target=Target(width=0.5), measure=False)
    assert type(result.model) is Pooling
    assert result.model.attention.embed_dim == 8
    assert result.model.attention.out_proj.weight.shape == (16, 8)
