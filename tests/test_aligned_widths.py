"""Kernels that take aligned widths only: the class keeps them in allocations that it can carry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_mm

from prunec import compiler
from prunec.compiler import Result, Target
from prunec.compiler.emit.aligned_widths import aligned_widths

ALIGNED = 4  # float32 entries in 16 bytes


class GroupedExperts(nn.Module):
    """Rows in three groups, each by matrices of its own, as two calls of a grouped kernel."""

    def __init__(self, hidden: int = 36) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 2 * hidden, 16) / 4)
        self.down = nn.Parameter(torch.randn(3, 16, hidden) / 6)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        mixed = _grouped_mm(x, self.up.transpose(1, 2), offs=offsets)
        gate, value = mixed.chunk(2, dim=-1)
        y = nn.functional.silu(gate) * value
        return _grouped_mm(y, self.down.transpose(1, 2), offs=offsets)


class GroupedModel(nn.Module):
    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.experts = GroupedExperts()
        self.head = nn.Linear(16, 5)
        self.register_buffer("offsets", torch.tensor([4, 8, 12], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).flatten(0, 1)
        y = y + self.experts(y, self.offsets * x.shape[0])
        return self.head(y).unflatten(0, x.shape[:2])


def compiled(**options: Any) -> Result:
    torch.manual_seed(0)
    batches = [(torch.randn(2, 12, 8),) for _ in range(4)]
    return compiler.compile(
        GroupedModel().eval(), batches[0], measure=False, calibration=batches, **options
    )


def test_widths_that_a_kernel_needs_aligned_are_found_from_its_operands() -> None:
    torch.manual_seed(0)
    graph = compiler.capture(GroupedModel().eval(), (torch.randn(2, 12, 8),))
    found = {var: step for var, step in aligned_widths(graph.inference)}
    names = {d.name: d for d in graph.prunable.values()}
    hidden = [d for d in names.values() if d.size == 36]
    assert hidden
    assert all(found[d.var] == ALIGNED for d in hidden if d.var is not None)


@pytest.mark.parametrize("share", [0.45, 0.6, 0.75])
def test_the_class_of_a_grouped_kernel_is_kept_with_aligned_widths(share: float) -> None:
    result = compiled(target=Target(params=share), keep_class="always")
    assert isinstance(result.model, GroupedModel)
    assert result.model.experts.down.shape[-1] % ALIGNED == 0
    assert result.model.experts.down.shape[-1] < 36
    assert all(check.passed for check in result.report.checks)


@pytest.mark.parametrize("target", [Target(width=0.45), Target(macs=0.55)])
def test_every_kind_of_target_keeps_to_aligned_widths(target: Target) -> None:
    result = compiled(target=target, keep_class="always")
    assert isinstance(result.model, GroupedModel)
    assert result.model.experts.down.shape[-1] % ALIGNED == 0


def test_the_note_says_what_widths_are_multiples_of() -> None:
    for share in (0.45, 0.5, 0.55, 0.65):
        free = compiled(target=Target(params=share), keep_class="never")
        if not isinstance(free.model, GroupedModel):
            notes = compiled(target=Target(params=share)).report.notes
            assert any(f"a multiple of {ALIGNED}" in n and "never" in n for n in notes)
            return
    pytest.fail("every free plan is aligned by chance")
