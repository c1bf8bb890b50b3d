"""Pieces that move, split, join and view axes, and the arithmetic between values."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from grown_nets import Dead, Growth, piece, weight
from torch import Tensor, nn

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


def like(g: Growth, i: int, differing: int | None = None) -> int:
    """Another value of the same shape (but along one axis), or a layer's result that is."""
    shape = list(g.values[i].shape)

    def fits(v: Tensor) -> bool:
        other = list(v.shape)
        if differing is not None and len(other) == len(shape):
            other[differing] = shape[differing]
        return other == shape

    others = [k for k in range(len(g.inputs), len(g.values)) if k != i and fits(g.values[k])]
    kind = g.one([*others[-3:], -1, -2])
    if kind >= 0:
        return kind
    if kind == -1:
        width = shape[-1]
        return g.add("linear", [i], lambda s, x: s.a(x), a=nn.Linear(width, width))[0]
    return g.add("relu", [i], lambda s, x: x.relu())[0]


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
def concatenation(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    reads = [i, like(g, i, a)]
    if g.flip():
        reads.append(like(g, i, a))
    if g.flip():
        reads.reverse()
    g.add(f"cat({a})", reads, lambda s, *xs: torch.cat(xs, a))


@piece
def concatenation_with_constant(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    shape = list(g.values[i].shape)[1:]
    shape[a - 1] = g.one([1, 2, 3])
    zeros = g.flip()
    p = weight(*shape)

    def run(s: Any, x: Tensor) -> Tensor:
        other = x.new_zeros(x.shape[0], *shape) if zeros else s.p.expand(x.shape[0], *shape)
        return torch.cat([other, x], a)

    g.add(f"cat({a}) with {'zeros' if zeros else 'parameter'}", [i], run, p=p)


@piece
def stacked(g: Growth) -> None:
    i = g.pick(2, 3, 4)
    a = g.one(range(1, g.values[i].dim() + 1))
    how = g.one(["keep", "sum", "mean", "amax", "select", "flatten", "unbind"])

    def run(s: Any, *xs: Tensor) -> Any:
        x = torch.stack(xs, a)
        if how in ("sum", "mean", "amax"):
            return getattr(x, how)(a)
        if how == "select":
            return x.select(a, 1)
        if how == "flatten":
            return x.flatten(a, a + 1) if a + 1 < x.dim() else x.flatten(a - 1, a)
        if how == "unbind":
            return x.unbind(a)
        return x

    if how == "flatten" and a == 1 and g.values[i].dim() == 1:
        raise Dead
    g.add(f"stack({a}) {how}", [i, like(g, i)], run)


@piece
def split(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i, lambda n: n >= 2)
    n = g.values[i].shape[a]
    how = g.one(["sizes", "chunk", "split", "tensor_split", "slices", "narrow"])
    cut = 1 + g.one(range(n - 1))
    many = g.one([2, 3, 4])

    def run(s: Any, x: Tensor) -> Any:
        if how == "sizes":
            return x.split([cut, n - cut], a)
        if how == "chunk":
            return x.chunk(many, a)
        if how == "split":
            return x.split(cut, a)[:4]
        if how == "tensor_split":
            return x.tensor_split(many, dim=a) if many <= n else x.tensor_split([cut], dim=a)
        if how == "narrow":
            return x.narrow(a, 0, cut), x.narrow(a, cut, n - cut)
        at = (slice(None),) * a
        return x[(*at, slice(None, cut))], x[(*at, slice(cut - n, None))]

    g.add(f"{how}({a}, {cut if how != 'chunk' else many})", [i], run)


@piece
def sliced(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i, lambda n: n >= 2)
    n = g.values[i].shape[a]
    start = g.one(range(n))
    stop = start + 1 + g.one(range(n - start))
    step = g.one([1, 2, 3])
    low, high = (start - n if g.flip() else start), (stop - n if stop < n and g.flip() else stop)
    at = (*(slice(None),) * a, slice(low, high, step))
    g.add(f"[{low}:{high}:{step}] on {a}", [i], lambda s, x: x[at])


@piece
def even_and_odd(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i, lambda n: n >= 2)
    at = (slice(None),) * a
    join = g.one(["cat", "stack", "apart", "mul"])

    def run(s: Any, x: Tensor) -> Any:
        even, odd = x[(*at, slice(0, None, 2))], x[(*at, slice(1, None, 2))]
        if join == "cat":
            return torch.cat([-odd, even], a)
        if join == "stack":
            return torch.stack([-odd, even], a + 1).flatten(a, a + 1)
        return even * odd if join == "mul" else (even, odd)

    if g.values[i].shape[a] % 2 and join in ("stack", "mul"):
        raise Dead
    g.add(f"even and odd({a}) {join}", [i], run)


@piece
def rotated_halves(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i, lambda n: n % 2 == 0)
    p = weight(g.values[i].shape[a] // 2)
    shape = [1] * g.values[i].dim()
    shape[a] = -1

    def run(s: Any, x: Tensor) -> Tensor:
        low, high = x.chunk(2, a)
        table = torch.cat([s.p, s.p]).view(shape)
        return x * table.cos() + torch.cat([-high, low], a) * table.sin()

    g.add(f"rotary({a})", [i], run, p=p)


@piece
def selected(g: Growth) -> None:
    i = g.pick(3, 4, 5)
    a = g.axis(i)
    k = g.one(range(g.values[i].shape[a]))
    g.add(f"select({a}, {k})", [i], lambda s, x: x.select(a, k))


@piece
def unbound(g: Growth) -> None:
    i = g.pick(3, 4, 5)
    a = g.axis(i, lambda n: n <= 4)
    g.add(f"unbind({a})", [i], lambda s, x: x.unbind(a))


def divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


@piece
def factored(g: Growth) -> None:
    i = g.pick(2, 3, 4)
    a = g.axis(i, lambda n: bool(divisors(n)))
    x = g.values[i]
    n = x.shape[a]
    d = g.one(divisors(n))
    how = g.one(["unflatten", "reshape", "view -1", "unflatten -1"])
    tail = list(x.shape[a + 1 :])

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "unflatten":
            return x.unflatten(a, (d, n // d))
        if how == "unflatten -1":
            return x.unflatten(a, (d, -1))
        if how == "view -1":
            return x.contiguous().view(*x.shape[:a], -1, n // d, *tail)
        return x.reshape(x.shape[0], *x.shape[1:a], d, n // d, *tail)

    g.add(f"{how} {n} = {d} x {n // d} on {a}", [i], run)


@piece
def merged(g: Growth) -> None:
    i = g.pick(3, 4, 5, 6)
    x = g.values[i]
    a = g.one(range(x.dim() - 2, 0, -1))
    how = g.one(["flatten", "reshape", "view"])
    tail = list(x.shape[a + 2 :])

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "flatten":
            return x.flatten(a, a + 1)
        if how == "view":
            return x.contiguous().view(*x.shape[:a], -1, *tail)
        return x.reshape(x.shape[0], *x.shape[1:a], x.shape[a] * x.shape[a + 1], *tail)

    g.add(f"{how}({a}, {a + 1})", [i], run)


@piece
def permuted(g: Growth) -> None:
    i = g.pick(3, 4, 5, 6)
    rank = g.values[i].dim()
    axes = list(range(1, rank))
    order: list[int] = []
    while axes:
        order.append(axes.pop(g.one(range(len(axes) - 1, -1, -1))))
    how = g.one(["permute", "transpose", "movedim"])

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "transpose":
            return x.transpose(order[0], order[-1])
        if how == "movedim":
            return x.movedim(order[0], order[-1])
        return x.permute(0, *order)

    g.add(f"{how}{order}", [i], run)


@piece
def shuffled(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i, lambda n: bool(divisors(n)))
    d = g.one(divisors(g.values[i].shape[a]))
    g.add(
        f"shuffle({a}, {d})",
        [i],
        lambda s, x: x.unflatten(a, (d, -1)).transpose(a, a + 1).flatten(a, a + 1),
    )


@piece
def viewed_across(g: Growth) -> None:
    """All axes but the batch as one, and that in other factors."""
    i = g.pick(3, 4, 5)
    n = g.values[i][0].numel()
    d = g.one(divisors(n))
    how = g.one(["two", "one", "three"])
    e = g.one(divisors(n // d)) if how == "three" else 0

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "one":
            return x.flatten(1)
        sizes = (d, n // d) if how == "two" else (d, e, n // d // e)
        return x.reshape(x.shape[0], *sizes)

    g.add(f"viewed as {how} ({d}, {e}) of {n}", [i], run)


@piece
def padded(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    low, high = g.one([0, 1, 2]), g.one([1, 0, 2])
    value = g.one([0.0, 1.5])
    spec = [0, 0] * (g.values[i].dim() - 1 - a) + [low, high]
    g.add(f"pad({a}, {low}, {high}) with {value}", [i], lambda s, x: F.pad(x, spec, value=value))


@piece
def repeated(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    how = g.one(["repeat", "interleave", "expand", "tile"])
    k = g.one([2, 3])
    rank = g.values[i].dim()

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "interleave":
            return x.repeat_interleave(k, a)
        if how == "expand":
            wide = x.unsqueeze(a).expand(*x.shape[:a], k, *x.shape[a:])
            return wide.reshape(*x.shape[:a], k * x.shape[a], *x.shape[a + 1 :])
        counts = [k if axis == a else 1 for axis in range(rank)]
        return x.repeat(counts) if how == "repeat" else x.tile(counts)

    g.add(f"{how}({a}) {k} times", [i], run)


@piece
def reordered(g: Growth) -> None:
    """What depends on the order of entries."""
    i = g.pick()
    a = g.axis(i)
    n = g.values[i].shape[a]
    how = g.one(["roll", "flip", "cumsum", "list", "sort", "argmax", "index_select", "diff"])
    at = (slice(None),) * a

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "list":
            return x[(*at, [n - 1, 0, n // 2])]
        if how == "index_select":
            return x.index_select(a, torch.arange(n - 1, -1, -1))
        if how == "argmax":
            return x.argmax(a, keepdim=True).to(x.dtype) * x
        if how == "sort":
            return x.sort(a).values
        return (
            x.roll(1, a)
            if how == "roll"
            else x.flip(a)
            if how == "flip"
            else getattr(x, how)(dim=a)
        )

    g.add(f"{how}({a})", [i], run)


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
        y = torch.zeros_like(x) if how == "zeros" else x.clone()
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
def batch_merged(g: Growth) -> None:
    """Work on the first axis and the batch as one."""
    i = g.pick(3, 4)
    x = g.values[i]
    a = g.axis(i)
    n, width = x.shape[a], x.movedim(a, 1).shape[2:]
    last = width[-1]
    how = g.one(["linear", "norm", "softmax", "relu"])

    def run(s: Any, x: Tensor) -> Tensor:
        y = x.movedim(a, 1)
        y = y.reshape(y.shape[0] * n, *width)
        y = s.a(y) if how in ("linear", "norm") else y.softmax(-1) if how == "softmax" else y.relu()
        return y.view(-1, n, *width)

    layer = nn.Linear(last, last) if how == "linear" else nn.LayerNorm(last)
    g.add(f"{how} with axis {a} in the batch", [i], run, a=layer)


@piece
def regrouped_attention_layout(g: Growth) -> None:
    """(heads, width) as (width, heads) and back through other views."""
    i = g.pick(3, 4)
    a = g.axis(i, lambda n: bool(divisors(n)))
    n = g.values[i].shape[a]
    d, e = g.one(divisors(n)), g.one(divisors(n))
    join = g.one(["sum", "apart"])

    def run(s: Any, x: Tensor) -> Any:
        p, q = x.unflatten(a, (d, -1)), x.unflatten(a, (e, -1))
        if join == "sum":
            return p.sum(a), q.sum(a + 1)
        return p, q

    g.add(f"seen as {d} x {n // d} and {e} x {n // e}, {join}", [i], run)


@piece
def windows(g: Growth) -> None:
    i = g.pick(4, fits=lambda v: v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0)
    back = g.flip()
    _, c, h, w = g.values[i].shape

    def run(s: Any, x: Tensor) -> Tensor:
        y = x.roll((1, 1), (2, 3)).view(-1, c, h // 2, 2, w // 2, 2)
        y = y.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        y = y.view(-1, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return y.reshape(-1, h, w, c).permute(0, 3, 1, 2) if back else y.flatten(1, 4)

    g.add(f"windows, {'back' if back else 'flat'}", [i], run)


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
