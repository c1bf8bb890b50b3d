"""Pieces that compute: pointwise, between values, statistics over axes, writes in place."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from grown_nets import Dead, Growth, like, piece, weight
from torch import Tensor

UNARY = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "abs": torch.abs,
    "square": torch.square,
    "negative": torch.neg,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "cos": torch.cos,
    "shifted": lambda x: x + 0.5,
    "minus one": lambda x: 1 - x,
    "clamped": lambda x: x.clamp(-0.5, 2.0),
    "clamped above zero": lambda x: x.clamp_min(0.3),
    "masked": lambda x: x.masked_fill(x < -1, 0.0),
    "masked with one": lambda x: x.masked_fill(x < -1, 1.0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "signs": torch.sign,
    "reciprocal": lambda x: 1 / (1 + x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1),
    "cube": lambda x: x**3,
    "power of two": lambda x: 2 ** x.clamp(-3, 3),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "contiguous": lambda x: x.contiguous(),
    "squeezed": lambda x: x.unsqueeze(-1).squeeze(-1),
    "log1p": lambda x: x.abs().log1p(),
    "comparison": lambda x: (x > 0).to(x.dtype) * x,
}
BINARY = {
    "add": torch.add,
    "mul": torch.mul,
    "sub": torch.sub,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "gate": lambda a, b: a.sigmoid() * b,
    "add alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "quotient": lambda a, b: a / (1 + b.abs()),
    "where": lambda a, b: torch.where(b > 0, a, b),
    "highway": lambda a, b: a.sigmoid() * b + (1 - a.sigmoid()) * a,
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "hypot": torch.hypot,
}
REDUCE = {
    "mean": lambda x, a, k: x.mean(a, keepdim=k),
    "sum": lambda x, a, k: x.sum(a, keepdim=k),
    "amax": lambda x, a, k: x.amax(a, keepdim=k),
    "amin": lambda x, a, k: x.amin(a, keepdim=k),
    "var": lambda x, a, k: x.var(a, keepdim=k),
    "std": lambda x, a, k: (x.var(a, keepdim=k, unbiased=False) + 1e-3).sqrt(),
    "norm": lambda x, a, k: torch.linalg.vector_norm(x, dim=a, keepdim=k),
    "logsumexp": lambda x, a, k: x.logsumexp(a, keepdim=k),
    "max": lambda x, a, k: x.max(a, keepdim=k).values,
    "prod": lambda x, a, k: x.tanh().prod(a, keepdim=k),
    "mean of squares": lambda x, a, k: x.square().mean(a, keepdim=k),
    "all": lambda x, a, k: (x > -1).all(a, keepdim=k).to(x.dtype),
    "softmax mean": lambda x, a, k: (x * x.softmax(a)).sum(a, keepdim=k),
}


def named(g: Growth, table: dict[str, Any]) -> tuple[str, Any]:
    name = g.one(list(table))
    return name, table[name]


@piece
def unary(g: Growth) -> None:
    name, f = named(g, UNARY)
    g.add(name, [g.pick()], lambda s, x: f(x))


@piece
def binary(g: Growth) -> None:
    name, f = named(g, BINARY)
    i = g.pick()
    pair = [i, like(g, i)]
    g.add(name, pair if g.flip() else pair[::-1], lambda s, a, b: f(a, b))


@piece
def broadcast(g: Growth) -> None:
    """Against a parameter that has some of the axes."""
    name, f = named(g, BINARY)
    i = g.pick()
    shape = list(g.values[i].shape)[1:]
    own = [n if g.flip() else 1 for n in shape]
    lead = 0
    while lead < len(own) - 1 and own[lead] == 1 and g.flip():
        lead += 1
    p = weight(*own[lead:])
    swap = g.flip()
    g.add(
        f"{name} with parameter{own[lead:]}",
        [i],
        lambda s, x: f(s.p, x) if swap else f(x, s.p),
        p=p,
    )


@piece
def scaled_by_statistic(g: Growth) -> None:
    name, f = named(g, BINARY)
    reduction, r = named(g, REDUCE)
    i = g.pick()
    a = g.axis(i)
    g.add(f"{name} with {reduction}({a})", [i], lambda s, x: f(x, r(x, a, True)))


@piece
def reduced(g: Growth) -> None:
    reduction, r = named(g, REDUCE)
    i = g.pick(3, 4, 5, 6)
    a = g.axis(i)
    g.add(f"{reduction}({a})", [i], lambda s, x: r(x, a, False))


@piece
def reduced_over_several(g: Growth) -> None:
    name = g.one(["mean", "sum", "amax", "norm", "logsumexp", "mean of squares"])
    i = g.pick(3, 4, 5, 6)
    axes = tuple(a for a in range(1, g.values[i].dim()) if g.flip())
    if not axes:
        raise Dead
    r = REDUCE[name]
    g.add(f"scaled by {name}{axes}", [i], lambda s, x: x / (1 + r(x, axes, True).abs()))


@piece
def softmax(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    f = g.one([torch.softmax, torch.log_softmax])
    g.add(f"softmax({a})", [i], lambda s, x: f(x, a))


@piece
def written_in_part(g: Growth) -> None:
    """In-place writes to a copy, or to a part of zeros."""
    i = g.pick()
    a = g.axis(i, lambda n: n >= 2)
    n = g.values[i].shape[a]
    cut = 1 + g.one(range(n - 1))
    how = g.one(["add", "mul", "store", "zeros", "fill", "whole", "view"])
    at = (*(slice(None),) * a, slice(None, cut))

    def run(s: Any, x: Tensor) -> Tensor:
        y = torch.zeros_like(x) if how == "zeros" else x.contiguous().clone()
        if how == "add":
            y[at] += 1.0
        elif how == "mul":
            y[at].mul_(x[at].sigmoid())
        elif how in ("store", "zeros"):
            y[at] = x[at].relu()
        elif how == "fill":
            y[at] = 0.0
        elif how == "view":
            y.flatten(1).mul_(2.0)
        else:
            y.add_(x.tanh()).mul_(0.5)
        return y

    g.add(f"in place {how}({a}, {cut})", [i], run)


@piece
def outer_product(g: Growth) -> None:
    i = g.pick(2, 3)
    rank = g.values[i].dim()
    flat = g.flip()

    def run(s: Any, x: Tensor) -> Tensor:
        y = x.unsqueeze(-1) * x.tanh().unsqueeze(-2)
        return y.flatten(rank - 1) if flat else y

    if math.prod(g.values[i].shape[1:]) * g.values[i].shape[-1] > 300:
        raise Dead
    g.add("outer product", [i], run)
