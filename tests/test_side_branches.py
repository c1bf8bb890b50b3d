"""Parameters that the captured outputs do not use: auxiliary heads, outputs that do not matter."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Result, Target
from prunec.compiler.errors import CaptureError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Inception(nn.Module):
    """Two branches side by side, and an auxiliary head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.one, self.three = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.aux_depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.aux_conv, self.aux_norm = nn.Conv2d(16, 6, 1), nn.BatchNorm2d(6)
        self.aux = nn.Linear(6, 5)
        self.body, self.head = nn.Conv2d(16, 10, 3), nn.Linear(10, 5)

    def side(self, x: Tensor) -> Tensor:
        return self.aux(
            torch.relu(self.aux_norm(self.aux_conv(self.aux_depthwise(x)))).mean((2, 3))
        )

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(torch.cat([self.one(x), self.three(x)], 1))
        y = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return (y, self.side(x)) if self.training else y


class TrainsByValue(Inception):
    """What train mode does depends on a value: it cannot be exported."""

    def side(self, x: Tensor) -> Tensor:
        return super().side(x) * (2.0 if bool((x.sum() > 1e9).tolist()) else 1.0)


class Pooled(nn.Module):
    """A pooler beside the logits, tied to nothing that the logits use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pooler = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.body(x))
        return {"logits": self.head(h), "pooled": torch.tanh(self.pooler(h))}


def halved(model: nn.Module, x: Any = IMAGES, **options: Any) -> Result:
    return compiler.compile(model, x, target=Target(width=0.5), measure=False, **options)


def built(cls: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return cls().eval()


def test_auxiliary_head_follows_the_widths_it_reads() -> None:
    model = built(Inception)
    before = model.stem.weight.clone(), model.norm.running_mean.clone()
    result = halved(model)
    small = result.model
    assert type(small) is Inception
    assert (small.aux_conv.in_channels, small.aux_conv.out_channels) == (8, 6)
    assert (small.aux_depthwise.groups, small.aux_depthwise.in_channels) == (8, 8)
    assert small.aux_norm.num_features == 6
    assert any("run outside the captured outputs (aux" in note for note in result.report.notes)
    assert result.report.after.params == sum(p.numel() for p in small.parameters())
    small.train()
    y, side = small(IMAGES)
    assert (y.shape, side.shape) == ((2, 5), (2, 5))
    (y.sum() + side.sum()).backward()
    assert small.aux_conv.weight.grad is not None
    assert not model.training
    assert torch.equal(model.stem.weight, before[0])
    assert torch.equal(model.norm.running_mean, before[1])


def test_auxiliary_head_reads_the_entries_that_were_kept(tmp_path: pathlib.Path) -> None:
    model = built(Inception)
    result = halved(model)
    kept = result.plan.slices()["body.weight"][1]
    assert kept.tolist() not in (list(range(8)), list(range(8, 16)))
    assert torch.equal(result.model.aux_conv.weight, model.aux_conv.weight[:, kept])
    again = compiler.Plan.from_json(result.plan.to_json()).apply(model)
    assert torch.equal(again.aux_conv.weight, result.model.aux_conv.weight)
    loaded = compiler.load(result.save(tmp_path / "small"), model=model)
    assert torch.equal(loaded.aux_conv.weight, result.model.aux_conv.weight)


def test_training_is_checked_where_eval_mode_is_all_that_is_captured() -> None:
    model = built(Inception)
    result = halved(model, mode="eval")
    assert result.model is result.graph_module
    assert any("breaks in train mode" in note for note in result.report.notes)
    result.model.train()(IMAGES)


def test_training_that_cannot_be_captured_is_noted_and_not_broken() -> None:
    result = halved(built(TrainsByValue))
    notes = " ".join(result.report.notes)
    assert (
        "with aux_depthwise, aux_conv, aux_norm, ... could not be captured in train mode" in notes
    )
    assert "the module breaks in train mode" in notes
    assert result.model is result.graph_module
    result.model.train()(IMAGES)


def test_branch_of_an_output_that_does_not_matter_follows() -> None:
    model, x = built(Pooled), torch.randn(2, 8)
    result = halved(model, x, outputs="logits")
    assert type(result.model) is Pooled
    assert (result.model.pooler.in_features, result.model.pooler.out_features) == (8, 16)
    assert result.model(x)["pooled"].shape == (2, 16)


def test_tied_tensor_of_a_side_branch_is_cut_once() -> None:
    model, x = built(Pooled), torch.randn(2, 8)
    model.pooler = nn.Linear(16, 3)
    model.pooler.weight = model.head.weight
    small = halved(model, x, outputs="logits").model
    assert small.pooler.weight is small.head.weight
    assert small.pooler.in_features == 8
    assert small(x)["pooled"].shape == (2, 3)


def test_layers_that_never_run_are_left_alone() -> None:
    model = built(Inception)
    model.spare = nn.Linear(16, 16)
    small = halved(model).model
    assert small.spare.in_features == 16


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match="'auto' or 'eval', not 'train'"):
        compiler.capture(built(Inception), (IMAGES,), mode="train")
