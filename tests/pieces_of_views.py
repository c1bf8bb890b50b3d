"""Pieces that move, split, join and view axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from grown_nets import Dead, Growth, divisors, like, piece, weight
from torch import Tensor, nn


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
