"""Pieces of ops that models use now and then: indices, writes, orders, diagonals, constructors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from grown_nets import Growth, like, piece, weight
from torch import Tensor, nn


def _rows(x: Tensor, a: int) -> Tensor:
    return x.movedim(a, 1)


ONE = {
    "gather": lambda x, a: x.gather(a, torch.zeros_like(x, dtype=torch.long)),
    "take_along": lambda x, a: torch.take_along_dim(x, x.argsort(a), a),
    "topk": lambda x, a: x.topk(1, a).values,
    "cummax": lambda x, a: x.cummax(a).values,
    "logcumsumexp": lambda x, a: x.logcumsumexp(a),
    "flip other": lambda x, a: x.flip(1),
    "tril": lambda x, a: x.tril() if x.dim() > 2 else x,
    "diagonal": lambda x, a: torch.diagonal(x, 0, 1, 2) if x.dim() > 2 else x,
    "unfold": lambda x, a: x.unfold(a, 2, 1).sum(-1),
    "index by range": lambda x, a: x.index_select(a, torch.arange(x.shape[a])),
    "aminmax": lambda x, a: torch.aminmax(x, dim=a, keepdim=True).max - x,
    "var_mean": lambda x, a: x - torch.var_mean(x, a, keepdim=True)[1],
    "std_mean": lambda x, a: x / (1 + torch.std_mean(x, a, keepdim=True, correction=0)[0]),
    "max index": lambda x, a: x.max(a, keepdim=True).indices.to(x.dtype) + x,
    "count": lambda x, a: x * (x > 0).sum(a, keepdim=True),
    "any": lambda x, a: x * (x > 1).any(a, keepdim=True),
    "norm by one": lambda x, a: F.normalize(x, p=1.0, dim=a),
    "softmin": lambda x, a: F.softmin(x, dim=a),
    "log_softmax": lambda x, a: x.log_softmax(a).exp(),
    "arange added": lambda x, a: _rows(
        _rows(x, a) + torch.arange(x.shape[a]).view(-1, *[1] * (x.dim() - 2)), a
    ),
    "ones added": lambda x, a: x + torch.ones(x.shape[1:]),
    "linspace scaled": lambda x, a: x * torch.linspace(0, 1, x.shape[-1]),
    "zeros like": lambda x, a: torch.maximum(x, torch.zeros_like(x)),
    "full like": lambda x, a: torch.minimum(x, torch.full_like(x, 0.5)),
    "eye": lambda x, a: x @ torch.eye(x.shape[-1]),
    "one hot": lambda x, a: F.one_hot(x.argmax(a), x.shape[a]).to(x.dtype).sum(1),
    "expand_as": lambda x, a: x.mean(a, keepdim=True).expand_as(x) * x,
    "broadcast_to": lambda x, a: x.sum(a, keepdim=True).broadcast_to(x.shape) + x,
    "view_as": lambda x, a: x.flatten(1).relu().view_as(x),
    "two steps": lambda x, a: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]).flatten(0, 1)[::2],
    "squeeze all": lambda x, a: x.unsqueeze(a).squeeze(a) * 2,
    "square of sums": lambda x, a: x * x.sum(tuple(range(1, x.dim())), keepdim=True).tanh(),
    "mean of all": lambda x, a: x - x.mean(),
    "swapaxes": lambda x, a: x.swapaxes(1, a).mT if x.dim() > 2 else x,
    "hsplit": lambda x, a: torch.cat(x.tensor_split([1], a)[::-1], a),
    "detach": lambda x, a: x.detach() + x - x.detach(),
    "nan_to_num": lambda x, a: torch.nan_to_num(x / x.abs().clamp_min(1e-2)),
    "select twice": lambda x, a: x.select(a, 0).unsqueeze(a) * x,
    "softmax of products": lambda x, a: (x * x.softmax(a)).sum(a, keepdim=True) + x,
}
TWO = {
    "where": lambda a, b: torch.where(a > b, a, b.tanh()),
    "lerp": lambda a, b: torch.lerp(a, b, b.sigmoid()),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b.abs() + 1),
    "logaddexp": torch.logaddexp,
    "atan2": lambda a, b: torch.atan2(a, b.abs() + 0.5),
    "stack max": lambda a, b: torch.stack([a, b]).amax(0),
    "outer": lambda a, b: torch.einsum("bi...,bj...->bij", a.flatten(1), b.flatten(1)[:, :2]),
    "inner": lambda a, b: (a.flatten(1) * b.flatten(1)).sum(1, keepdim=True),
    "einsum": lambda a, b: torch.einsum("b...i,b...i->b...", a, b).unsqueeze(-1) * a,
    "baddbmm": lambda a, b: torch.baddbmm(a @ b.mT, a, b.mT) if a.dim() == 3 else a + b,
    "copied": lambda a, b: a.clone().copy_(b) + a,
    "masked": lambda a, b: a.masked_fill(b < 0, 0.0),
    "slice_scatter": lambda a, b: a.slice_scatter(b[:, :1], 1, 0, 1),
    "index_put": lambda a, b: a.clone().index_put_((torch.tensor([0]),), b[:1]),
    "index_add": lambda a, b: a.index_add(1, torch.tensor([0]), b[:, :1]),
    "scatter_add": lambda a, b: a.scatter_add(-1, torch.zeros_like(b, dtype=torch.long), b),
    "boolean": lambda a, b: a * (b > 0) + b.logical_not().to(a.dtype),
    "concat chunks": lambda a, b: torch.cat([torch.cat([a, b], 1), b], 1).narrow(1, 1, a.shape[1]),
    "interleaved": lambda a, b: torch.stack([a, b], -1).flatten(-2),
    "cross gate": lambda a, b: a * b.mean(-1, keepdim=True).sigmoid(),
}


@piece
def rare(g: Growth) -> None:
    name = g.one(list(ONE))
    i = g.pick()
    a = g.axis(i)
    g.add(f"{name}({a})", [i], lambda s, x: ONE[name](x, a))


@piece
def rare_pair(g: Growth) -> None:
    name = g.one(list(TWO))
    i = g.pick()
    g.add(name, [i, like(g, i)], lambda s, a, b: TWO[name](a, b))


@piece
def computed_weights(g: Growth) -> None:
    """A layer whose weight is made from parameters by views, joins, gates and statistics."""
    i = g.pick()
    k = g.values[i].shape[-1]
    n = g.one([6, 4, 8])
    how = g.one(["gated", "joined", "viewed", "masked", "summed", "softmax", "kron", "expanded"])
    w, v = weight(n, k), weight(n, 1)

    def run(s: Any, x: Tensor) -> Tensor:
        w = s.w
        if how == "gated":
            w = w * s.v.sigmoid()
        elif how == "joined":
            w = torch.cat([w[: n // 2], w[n // 2 :].relu()])
        elif how == "viewed":
            w = w.view(2, n // 2, k).transpose(0, 1).reshape(n, k)
        elif how == "masked":
            w = w * (s.v > 0)
        elif how == "summed":
            w = w + w.sum(0, keepdim=True)
        elif how == "softmax":
            w = w.softmax(0)
        elif how == "kron":
            w = torch.kron(w, s.v[:1, :1])
        else:
            w = s.v.expand(n, k) + w
        return F.linear(x, w, s.v.squeeze())

    g.add(f"{how} weights to {n}", [i], run, w=w, v=v)


@piece
def convolution_with_made_weights(g: Growth) -> None:
    i = g.pick(3, 4)
    c, rank = g.values[i].shape[1], g.values[i].dim()
    n = g.one([6, 4, 8])
    how = g.one(["shared kernel", "standardised", "weight_norm", "from linear"])
    own = nn.Parameter(torch.randn(n, c, *[1] * (rank - 2)))

    def run(s: Any, x: Tensor) -> Tensor:
        w = s.w
        if how == "standardised":
            w = (w - w.mean((1, 2), keepdim=True)) / (w.std(dim=(1, 2), keepdim=True) + 1)
        elif how == "weight_norm":
            w = w / (w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) + 1e-3)
        elif how == "shared kernel":
            w = w.mean(0, keepdim=True).expand_as(w)
        else:
            w = F.linear(w.flatten(1), s.square).view_as(w)
        return (F.conv2d if rank == 4 else F.conv1d)(x, w)

    if how == "standardised" and c == 1:
        how = "weight_norm"
    g.add(f"convolution with {how} to {n}", [i], run, w=own, square=weight(c, c))


@piece
def sequence_of_layers(g: Growth) -> None:
    """Several layers in one module, some called twice."""
    i = g.pick()
    k = g.values[i].shape[-1]
    n = g.one([6, 4, 8])
    twice = g.flip()
    net = nn.Sequential(nn.Linear(k, n), nn.LayerNorm(n), nn.GELU(), nn.Linear(n, k))

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.net(x)
        return s.net(x + y) if twice else x + y

    g.add(f"sequence of {n}{', twice' if twice else ''}", [i], run, net=net)
