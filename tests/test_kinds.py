"""The kind of a dimension comes from what a softmax, a sum or a weight runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import module, weight
from torch import Tensor, nn

from prunec import compiler, passes

EXPERTS = 3
Forward = Callable[[Any, Tensor], Tensor]
LAYERED: dict[str, Forward] = {}
ATTENDING: dict[str, Forward] = {}


def net(forward: Forward) -> nn.Module:
    """Experts of 20 hidden units, and attention of 4 heads of width 6, over a stream of 10."""
    return module(
        forward,
        stem=nn.Linear(8, 10),
        router=nn.Linear(10, EXPERTS),
        up=weight(EXPERTS, 10, 20),
        down=weight(EXPERTS, 20, 10),
        q=weight(10, 4, 6),
        k=weight(10, 4, 6),
        v=weight(10, 4, 6),
        o=weight(4, 6, 10),
        head=nn.Linear(10, 2),
    )


def into(table: dict[str, Forward]) -> Callable[[Forward], Forward]:
    def add(forward: Forward) -> Forward:
        table[forward.__name__] = forward
        return forward

    return add


@into(LAYERED)
def experts_by_one_einsum(self: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("btd,edh->bteh", x, self.up).relu()
    return torch.einsum("bteh,ehd,bte->btd", hidden, self.down, self.router(x).softmax(-1))


@into(LAYERED)
def experts_mixed_by_an_einsum_of_their_own(self: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("btd,edh->bteh", x, self.up).relu()
    results = torch.einsum("bteh,ehd->bted", hidden, self.down)
    return torch.einsum("bted,bte->btd", results, self.router(x).softmax(-1))


@into(LAYERED)
def experts_mixed_by_sigmoids(self: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("btd,edh->bteh", x, self.up).relu()
    results = torch.einsum("bteh,ehd->bted", hidden, self.down)
    return torch.einsum("bted,bte->btd", results, self.router(x).sigmoid())


@into(LAYERED)
def experts_mixed_by_matmul(self: Any, x: Tensor) -> Tensor:
    hidden = torch.einsum("btd,edh->bteh", x, self.up).relu()
    results = torch.einsum("bteh,ehd->btde", hidden, self.down)
    return (results @ self.router(x).softmax(-1)[..., None]).squeeze(-1)


@into(LAYERED)
def experts_by_bmm(self: Any, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1).expand(EXPERTS, -1, -1)
    results = torch.bmm(torch.bmm(rows, self.up).relu(), self.down).view(EXPERTS, *x.shape)
    shares = self.router(x).softmax(-1)
    return (results * shares.permute(2, 0, 1)[..., None]).sum(0)


@into(LAYERED)
def the_best_expert_by_bmm(self: Any, x: Tensor) -> Tensor:
    rows, which = x.flatten(0, 1)[:, None], self.router(x).flatten(0, 1).argmax(-1)
    return torch.bmm(torch.bmm(rows, self.up[which]).relu(), self.down[which]).view(x.shape)


@into(LAYERED)
def the_best_expert_by_a_transposed_weight(self: Any, x: Tensor) -> Tensor:
    rows, which = x.flatten(0, 1)[..., None], self.router(x).flatten(0, 1).argmax(-1)
    up, down = (w.index_select(0, which).transpose(1, 2) for w in (self.up, self.down))
    return torch.bmm(down, torch.bmm(up, rows).relu()).view(x.shape)


@into(LAYERED)
def the_best_expert_by_an_einsum(self: Any, x: Tensor) -> Tensor:
    which = self.router(x).argmax(-1)
    hidden = torch.einsum("btd,btdh->bth", x, self.up[which]).relu()
    return torch.einsum("bth,bthd->btd", hidden, self.down[which])


def projected(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.einsum("btc,chd->bhtd", x, w) for w in (self.q, self.k, self.v))
    return q, k, v


@into(ATTENDING)
def attention_by_einsum(self: Any, x: Tensor) -> Tensor:
    q, k, v = projected(self, x)
    shares = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd,hdc->bqc", shares, v, self.o)


@into(ATTENDING)
def attention_by_bmm(self: Any, x: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in projected(self, x))
    out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return torch.einsum("bhtd,hdc->btc", out.view(x.shape[0], 4, x.shape[1], -1), self.o)


@into(ATTENDING)
def attention_without_a_softmax(self: Any, x: Tensor) -> Tensor:
    q, k, v = projected(self, x)
    return torch.einsum("bhtd,hdc->btc", q @ (k.transpose(2, 3) @ v), self.o)


@into(ATTENDING)
def attention_with_a_softmax_over_the_head(self: Any, x: Tensor) -> Tensor:
    q, k, v = projected(self, x)
    summary = k.softmax(-2).transpose(2, 3) @ v
    return torch.einsum("bhtd,hdc->btc", q.softmax(-1) @ summary, self.o)


def kinds(forward: Forward) -> tuple[compiler.Graph, dict[tuple[str, int], str]]:
    def whole(self: Any, x: Tensor) -> Tensor:
        return self.head(forward(self, self.stem(x)))

    graph = compiler.capture(net(whole).eval(), (torch.randn(2, 5, 8),))
    return graph, {place: d.kind for d in graph.prunable.values() for place in d.members}


@pytest.mark.parametrize("name", LAYERED)
def test_hidden_units_of_experts_are_hidden_and_a_default_pass_takes_them(name: str) -> None:
    graph, found = kinds(LAYERED[name])
    assert found["up", 2] == found["down", 1] == "hidden"
    assert found["down", 2] in ("hidden", "residual")
    assert found.get(("up", 0), "blocked") in ("expert", "group", "blocked")
    manager = compiler.PassManager(
        [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    )
    cut = manager.run(graph).plan.slices()
    assert len(cut["up"][2]) == 10


@pytest.mark.parametrize("name", [n for n in LAYERED if n.startswith("experts_by_one")])
def test_what_the_softmax_of_a_router_runs_over_is_experts(name: str) -> None:
    assert kinds(LAYERED[name])[1]["up", 0] == "expert"


@pytest.mark.parametrize("name", ATTENDING)
def test_the_width_of_a_head_stays_a_width_of_a_head(name: str) -> None:
    _, found = kinds(ATTENDING[name])
    for tensor in ("q", "k", "v"):
        assert found[tensor, 2] == "head-dim"
        assert found.get((tensor, 1), "head") == "head"
