"""Products of two values are attention where a softmax says so, experts where one is mixed by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import floats, module, weight
from torch import Tensor, nn

from prunec import compiler

TOKENS = floats(2, 5, 12)


def kinds(model: nn.Module) -> set[tuple[str, int]]:
    graph = compiler.capture(model.eval(), (TOKENS,))
    return {(d.kind, d.size) for d in graph.prunable.values()}


def experts(first: str, second: str, third: str = "", gate: str = "softmax") -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        g = self.gate(x)
        g = g.softmax(-1) if gate == "softmax" else g.sigmoid()
        h = torch.einsum(first, x, self.w1).relu()
        if third:
            return self.head(torch.einsum(third, torch.einsum(second, h, self.w2), g))
        return self.head(torch.einsum(second, h, self.w2, g))

    return module(
        forward, w1=weight(3, 12, 20), w2=weight(3, 20, 14), gate=nn.Linear(12, 3),
        head=nn.Linear(14, 4),
    )  # fmt: skip


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_hidden_units_of_einsum_experts_are_hidden(gate: str) -> None:
    found = kinds(experts("bsd,edh->bseh", "bseh,ehd,bse->bsd", gate=gate))
    assert found == {("expert", 3), ("hidden", 20), ("hidden", 14)}


@pytest.mark.parametrize("third", ["bsed,bse->bsd", "xyzc,xyz->xyc"])
def test_experts_that_are_mixed_in_a_step_of_its_own_are_experts(third: str) -> None:
    found = kinds(experts("bsd,edh->besh", "besh,ehd->bsed", third))
    assert found == {("expert", 3), ("hidden", 20), ("hidden", 14)}


def test_batched_matrices_of_experts_are_no_heads() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, t, d = x.shape
        rows = x.reshape(1, b * t, d).expand(3, -1, -1)
        y = torch.bmm(torch.bmm(rows, self.w1).relu(), self.w2).transpose(0, 1)
        shares = self.gate(x).softmax(-1).reshape(b * t, 1, 3)
        return self.head(torch.bmm(shares, y).view(b, t, 14))

    net = module(
        forward, w1=weight(3, 12, 20), w2=weight(3, 20, 14), gate=nn.Linear(12, 3),
        head=nn.Linear(14, 4),
    )  # fmt: skip
    assert kinds(net) == {("expert", 3), ("hidden", 20), ("hidden", 14)}


def test_sum_of_products_and_bilinear_form_are_of_hidden_units() -> None:
    def products(self: Any, x: Tensor) -> Tensor:
        summed = torch.einsum("bsr,bsr,bsr->bs", self.a(x), self.b(x), self.c(x))
        return self.head(summed[..., None])

    def form(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bsi,oij,bsj->bso", self.a(x), self.w, self.b(x)))

    a, b, c = (nn.Linear(12, 20) for _ in range(3))
    assert kinds(module(products, a=a, b=b, c=c, head=nn.Linear(1, 4))) == {("hidden", 20)}
    net = module(form, a=a, b=nn.Linear(12, 16), w=weight(9, 20, 16), head=nn.Linear(9, 4))
    assert kinds(net) == {("hidden", 20), ("hidden", 16), ("hidden", 9)}


@pytest.mark.parametrize(
    ("scores", "values"),
    [
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"),
        ("bkhd,bqhd->bhqk", "bkhd,bhqk->bqhd"),
        ("bqhd,bkhd->hbqk", "hbqk,bkhd->bqhd"),
    ],
)
def test_attention_by_einsum_keeps_heads_and_head_widths(scores: str, values: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part(x).view(b, t, 3, 8) for part in (self.q, self.k, self.v))
        first = (k, q) if scores.startswith("bk") else (q, k)
        shares = (torch.einsum(scores, *first) / 8**0.5).softmax(-1)
        second = (v, shares) if values.startswith("bk") else (shares, v)
        return self.o(torch.einsum(values, *second).reshape(b, t, 24))

    q, k, v = (nn.Linear(12, 24) for _ in range(3))
    assert kinds(module(forward, q=q, k=k, v=v, o=nn.Linear(24, 4))) == {
        ("head", 3),
        ("head-dim", 8),
    }


def test_attention_with_one_query_keeps_heads_and_head_widths() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x.mean(1)).view(b, 3, 8)
        k, v = (part(x).view(b, t, 3, 8) for part in (self.k, self.v))
        shares = torch.einsum("bhd,bthd->bht", q, k).softmax(-1)
        return self.o(torch.einsum("bht,bthd->bhd", shares, v).reshape(b, 24))

    q, k, v = (nn.Linear(12, 24) for _ in range(3))
    assert kinds(module(forward, q=q, k=k, v=v, o=nn.Linear(24, 4))) == {
        ("head", 3),
        ("head-dim", 8),
    }
