"""Pieces that hold weights: layers, norms, attention, gates, recurrences, tied weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from grown_nets import WIDTHS, Dead, Growth, divisors, like, piece, weight
from torch import Tensor, nn


@piece
def linear(g: Growth) -> None:
    i = g.pick()
    a = g.axis(i)
    layer = nn.Linear(g.values[i].shape[a], g.one(WIDTHS), bias=not g.flip())
    g.add(f"linear on {a}", [i], lambda s, x: s.a(x.movedim(a, -1)).movedim(-1, a), a=layer)


@piece
def residual_branch(g: Growth) -> None:
    i = g.pick()
    width = g.values[i].shape[-1]
    hidden = g.one(WIDTHS)
    act = g.one([F.relu, F.gelu, torch.sigmoid])
    g.add(
        f"residual branch of {hidden}",
        [i],
        lambda s, x: x + s.down(act(s.up(x))),
        up=nn.Linear(width, hidden),
        down=nn.Linear(hidden, width),
    )


@piece
def matrix(g: Growth) -> None:
    """x @ W in its spellings."""
    i = g.pick()
    k, n = g.values[i].shape[-1], g.one(WIDTHS)
    how = g.one(
        ["matmul", "einsum", "transposed", "sum of product", "tensordot", "low rank", "cat"]
    )
    w, v = weight(k, n), weight(n, k)
    rank = g.values[i].dim()

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "einsum":
            return torch.einsum("...k,kn->...n", x, s.w)
        if how == "transposed":
            return x @ s.v.t()
        if how == "sum of product":
            return (x.unsqueeze(-1) * s.w).sum(-2)
        if how == "tensordot":
            return torch.tensordot(x, s.w, ([rank - 1], [0]))
        if how == "low rank":
            return F.linear(x, s.w @ s.v)
        if how == "cat":
            return F.linear(x, torch.cat([s.v, s.w.t().tanh()]))
        return x @ s.w

    g.add(f"matrix by {how} to {n}", [i], run, w=w, v=v)


@piece
def norm(g: Growth) -> None:
    i = g.pick()
    x = g.values[i]
    c = x.shape[1]
    kinds = ["layer", "rms", "bare", "normalize", "layer over several"]
    kinds += ["batch", "instance"] if x.dim() in (3, 4) else ["batch"] if x.dim() == 2 else []
    kinds += ["group"] if c > 1 and x.dim() > 2 else []
    kind = g.one(kinds)
    affine = not g.flip()
    layer: Any = nn.Identity()
    last = x.shape[-1]
    if kind == "layer":
        layer = nn.LayerNorm(last, elementwise_affine=affine)
    elif kind == "rms":
        layer = nn.RMSNorm(last, elementwise_affine=affine)
    elif kind == "layer over several":
        layer = nn.LayerNorm(list(x.shape[1:]), elementwise_affine=affine)
    elif kind == "batch":
        layer = (nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d)(c, affine=affine)
        layer.running_mean.normal_()
    elif kind == "instance":
        layer = (nn.InstanceNorm2d if x.dim() == 4 else nn.InstanceNorm1d)(c, affine=affine)
    elif kind == "group":
        layer = nn.GroupNorm(g.one([1, c, *divisors(c)]), c, affine=affine)
    for p in layer.parameters():
        p.data += 0.3 * torch.randn_like(p)

    def run(s: Any, x: Tensor) -> Tensor:
        if kind == "bare":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
        return F.normalize(x, dim=-1) if kind == "normalize" else s.norm(x)

    if kind in ("instance", "layer") and x.dim() == 3 and last == 1:
        raise Dead
    g.add(f"{kind} norm{'' if affine else ' without weights'}", [i], run, norm=layer)


@piece
def convolution(g: Growth) -> None:
    i = g.pick(3, 4)
    rank = g.values[i].dim()
    c = g.values[i].shape[1]
    kind = g.one(["plain", "depthwise", "grouped", "transposed", "transposed grouped", "reflect"])
    size = g.one([3, 1]) if min(g.values[i].shape[2:]) > 2 else 1
    plain: Any = nn.Conv2d if rank == 4 else nn.Conv1d
    back: Any = nn.ConvTranspose2d if rank == 4 else nn.ConvTranspose1d
    options: dict[str, Any] = {"bias": not g.flip()}
    groups = g.one([1, *divisors(c), c])
    n = g.one(WIDTHS)
    if kind == "depthwise":
        layer = plain(c, c * g.one([1, 2]), size, padding=size // 2, groups=c, **options)
    elif kind == "grouped":
        layer = plain(c, groups * g.one([1, 2, 3]), size, groups=groups, **options)
    elif kind == "transposed":
        layer = back(c, n, size, **options)
    elif kind == "transposed grouped":
        layer = back(
            c, groups * g.one([1, 2]), size, groups=groups, stride=g.one([1, 2]), **options
        )
    elif kind == "reflect":
        layer = plain(c, n, size, padding=size // 2, padding_mode="reflect", **options)
    else:
        layer = plain(c, n, size, padding=size // 2, stride=g.one([1, 2]), **options)
    text = f"{kind} convolution {c} to {layer.out_channels}, {layer.groups} groups, size {size}"
    g.add(text, [i], lambda s, x: s.a(x), a=layer)


@piece
def pooled(g: Growth) -> None:
    i = g.pick(3, 4, fits=lambda v: min(v.shape[2:]) >= 2)
    two = g.values[i].dim() == 4
    how = g.one(["max", "avg", "adaptive", "resize", "lp"])

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "max":
            return F.max_pool2d(x, 2) if two else F.max_pool1d(x, 2)
        if how == "avg":
            return F.avg_pool2d(x, 2) if two else F.avg_pool1d(x, 2)
        if how == "adaptive":
            return F.adaptive_avg_pool2d(x, 1) if two else F.adaptive_max_pool1d(x, 2)
        if how == "lp":
            return F.lp_pool2d(x, 2.0, 2) if two else F.lp_pool1d(x, 2.0, 2)
        return F.interpolate(x, scale_factor=2.0, mode="bilinear" if two else "linear")

    g.add(f"{how} pool", [i], run)


@piece
def pixels(g: Growth) -> None:
    i = g.pick(4)
    _, c, h, w = g.values[i].shape
    hows = ["shuffle"] * (c % 4 == 0) + ["unshuffle"] * (h % 2 == 0 and w % 2 == 0)
    hows += ["channel shuffle"] * (c % 2 == 0) + ["unfold"] * (min(h, w) >= 2)
    how = g.one(hows)

    def run(s: Any, x: Tensor) -> Tensor:
        if how == "shuffle":
            return F.pixel_shuffle(x, 2)
        if how == "channel shuffle":
            return F.channel_shuffle(x, 2)
        if how == "unfold":
            return F.unfold(x, 2)
        return F.pixel_unshuffle(x, 2)

    g.add(f"pixel {how}", [i], run)


@piece
def gated(g: Growth) -> None:
    i = g.pick()
    width, n = g.values[i].shape[-1], g.one(WIDTHS[:8])
    how = g.one(["glu", "swiglu", "split", "interleaved", "reversed", "maxout", "geglu views"])
    layer = nn.Linear(width, 2 * n)

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.both(x)
        if how == "glu":
            return F.glu(y, -1)
        if how == "interleaved":
            return F.silu(y[..., ::2]) * y[..., 1::2]
        if how == "split":
            a, b = y.split([n, n], -1)
            return a * b.tanh()
        if how == "maxout":
            return y.unflatten(-1, (n, 2)).amax(-1)
        if how == "geglu views":
            a, b = y.view(*y.shape[:-1], 2, n).unbind(-2)
            return F.gelu(a) * b
        a, b = y.chunk(2, -1)
        return F.silu(b) * a if how == "reversed" else F.silu(a) * b

    g.add(f"{how} gate of {n}", [i], run, both=layer)


@piece
def squeeze_and_excite(g: Growth) -> None:
    i = g.pick(3, 4)
    c, n = g.values[i].shape[1], g.one(WIDTHS)
    axes = tuple(range(2, g.values[i].dim()))
    view = g.flip()

    def run(s: Any, x: Tensor) -> Tensor:
        gate = s.up(s.down(x.mean(axes)).relu()).sigmoid()
        if view:
            return x * gate.view(x.shape[0], c, *(1 for _ in axes))
        return x * gate[(..., *(None for _ in axes))].expand_as(x)

    g.add(f"squeeze and excite of {n}", [i], run, down=nn.Linear(c, n), up=nn.Linear(n, c))


@piece
def film(g: Growth) -> None:
    """A vector scales and shifts the channels of a value."""
    i = g.pick(3, 4, 5)
    j = g.pick(2)
    a = g.axis(i)
    n = g.values[i].shape[a]
    shape = [1] * (g.values[i].dim() - 1)
    shape[a - 1] = n

    def run(s: Any, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = s.a(c).view(-1, 2, *shape).unbind(1)
        return x * (1 + scale) + shift

    g.add(f"film({a})", [i, j], run, a=nn.Linear(g.values[j].shape[1], 2 * n))


@piece
def attention(g: Growth) -> None:
    i = g.pick(3)
    j = i if not g.flip() else g.pick(3)
    c, cj = g.values[i].shape[2], g.values[j].shape[2]
    kv, r, d = g.one([2, 1, 3]), g.one([1, 2]), g.one([4, 2, 3, 6])
    h = kv * r
    layout = g.one(["separate", "chunk", "3hd", "hd3", "per head", "in place of heads"])
    if layout != "separate":
        kv, r, j, cj = h, 1, i, c
    kernel = g.one(["sdpa", "softmax", "einsum", "bmm", "no softmax"])
    gqa = g.one(["expand", "enable", "interleave"])
    extras = [g.flip() for _ in range(4)]
    parts: dict[str, Any] = {"out": nn.Linear(h * d, g.one([c, *WIDTHS]))}
    if layout == "separate":
        parts |= {"q": nn.Linear(c, h * d), "k": nn.Linear(cj, kv * d), "v": nn.Linear(cj, kv * d)}
    else:
        parts["qkv"] = nn.Linear(c, 3 * h * d, bias=extras[3])
    parts |= {"freq": weight(max(d // 2, 1)), "slopes": weight(h, 1, 1), "qn": nn.RMSNorm(d)}

    def heads(x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, d)).transpose(1, 2)

    def split(s: Any, x: Tensor, y: Tensor) -> Any:
        b, n, _ = x.shape
        if layout == "separate":
            return heads(s.q(x), h), heads(s.k(y), kv), heads(s.v(y), kv)
        z = s.qkv(x)
        if layout == "chunk":
            return tuple(heads(t, h) for t in z.chunk(3, -1))
        if layout == "3hd":
            return z.reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
        if layout == "hd3":
            return z.view(b, n, h, d, 3).permute(4, 0, 2, 1, 3).unbind(0)
        if layout == "per head":
            return z.view(b, n, h, 3 * d).transpose(1, 2).split(d, -1)
        return tuple(z.view(b, n, h, 3, d).transpose(1, 2).unbind(3))

    def rotate(s: Any, t: Tensor) -> Tensor:
        angles = torch.arange(t.shape[2]).to(t.dtype)[:, None] * s.freq
        table = torch.cat([angles, angles], -1)
        low, high = t.chunk(2, -1)
        return t * table.cos() + torch.cat([-high, low], -1) * table.sin()

    def run(s: Any, x: Tensor, *more: Tensor) -> Tensor:
        q, k, v = split(s, x, more[0] if more else x)
        if extras[0] and d % 2 == 0:
            q, k = rotate(s, q), rotate(s, k)
        if extras[1]:
            q = s.qn(q)
        if r > 1 and not (kernel == "sdpa" and gqa == "enable"):
            if gqa == "interleave":
                k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
            else:
                b, _, n, _ = k.shape
                k, v = (t[:, :, None].expand(b, kv, r, n, d).reshape(b, h, n, d) for t in (k, v))
        bias = s.slopes.tanh() if extras[2] else None
        if kernel == "sdpa":
            grouped = r > 1 and gqa == "enable"
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
        elif kernel == "bmm":
            b = q.shape[0]
            q, k, v = (t.reshape(b * h, t.shape[2], d) for t in (q, k, v))
            y = torch.bmm(torch.bmm(q * d**-0.5, k.transpose(1, 2)).softmax(-1), v)
            y = y.view(b, h, -1, d)
        else:
            if kernel == "einsum":
                scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
            else:
                scores = q @ k.transpose(-2, -1)
            scores = scores if bias is None else scores + bias
            y = (scores if kernel == "no softmax" else scores.softmax(-1)) @ v
        b, _, n, _ = y.shape
        y = y.transpose(1, 2)
        y = y.reshape(b, n, h * d) if extras[3] else y.flatten(2)
        return s.out(y)

    text = f"attention {layout} {kernel}, {kv} x {r} heads of {d}, {gqa}, {extras}"
    g.add(text, [i] if i == j else [i, j], run, **parts)


@piece
def multihead_attention(g: Growth) -> None:
    i = g.pick(3, fits=lambda v: v.shape[2] % 2 == 0)
    c = g.values[i].shape[2]
    shares = g.flip()
    kind = g.one(["attention", "encoder", "sequence first"])
    if kind == "encoder":
        layer: Any = nn.TransformerEncoderLayer(
            c, 2, g.one(WIDTHS), batch_first=True, norm_first=shares
        )
    else:
        layer = nn.MultiheadAttention(c, 2, batch_first=kind == "attention")

    def run(s: Any, x: Tensor) -> Any:
        if kind == "encoder":
            return s.a(x)
        y = x if kind == "attention" else x.transpose(0, 1)
        y, w = s.a(y, y, y, need_weights=shares)
        y = y if kind == "attention" else y.transpose(0, 1)
        return (y, w) if shares else y

    g.add(f"multi-head {kind}", [i], run, a=layer)


@piece
def products_of_values(g: Growth) -> None:
    i = g.pick(3, 4)
    rank = g.values[i].dim()
    how = g.one(["x xT", "xT x", "linear attention", "cosine", "cdist", "gram einsum"])

    def run(s: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        if how == "x xT":
            return x @ y.mT
        if how == "xT x":
            return x.mT @ y
        if how == "linear attention":
            return (x.softmax(-1)) @ (y.softmax(-2).mT @ x)
        if how == "cosine":
            return F.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), dim=-1)
        if how == "cdist":
            return torch.cdist(x, y)
        return torch.einsum("b...mc,b...nc->b...mn", x, y)

    if rank == 4 and how == "cdist":
        raise Dead
    g.add(how, [i], run)


@piece
def einsum_of_heads(g: Growth) -> None:
    i = g.pick(4)
    _, _, h, d = g.values[i].shape
    e = g.one(WIDTHS)
    spec = g.one(
        ["bnhd,hde->bnhe", "bnhd,hde->bne", "bnhd,de->benh", "bnhd,he->bned", "bnhd,hd->bnh"]
    )
    sizes = {"h": h, "d": d, "e": e}
    p = weight(*(sizes[x] for x in spec.partition(",")[2].partition("->")[0]))
    g.add(f"einsum {spec}", [i], lambda s, x: torch.einsum(spec, x, s.p), p=p)


@piece
def recurrent(g: Growth) -> None:
    i = g.pick(3)
    c, n = g.values[i].shape[2], g.one([4, 3, 6])
    kind: Any = g.one([nn.GRU, nn.LSTM, nn.RNN])
    both, layers = g.flip(), 1 + g.flip()
    last = g.flip()

    def run(s: Any, x: Tensor) -> Any:
        y, state = s.a(x)
        state = state[0] if isinstance(state, tuple) else state
        return (y, state[-1]) if last else y

    layer = kind(c, n, layers, bidirectional=both, batch_first=True, bias=not g.flip())
    g.add(f"{kind.__name__} of {n}, {layers} layers{', both ways' * both}", [i], run, a=layer)


@piece
def again(g: Growth) -> None:
    """A layer of an earlier step once more, on a value that fits."""
    found = [
        (k, m)
        for k, step in enumerate(g.net.steps)
        for m in step.children()
        if isinstance(m, nn.Linear)
    ]
    k, layer = g.one(found[::-1])
    wide, tied = layer.in_features, g.flip()
    need = layer.out_features if tied else wide
    i = g.pick(fits=lambda v: v.shape[-1] == need)

    def run(s: Any, x: Tensor) -> Tensor:
        return F.linear(x, s.a.weight.t()) if tied else s.a(x)

    g.add(f"{'weight of' if tied else ''} step {k} again", [i], run, a=layer)


@piece
def tied_sum(g: Growth) -> None:
    i = g.pick()
    width, n = g.values[i].shape[-1], g.one(WIDTHS)
    cut = g.one(range(1, n + 1))

    def run(s: Any, x: Tensor) -> Any:
        return F.linear(x, s.w[:cut], s.b[:cut]), F.linear(x, s.w, s.b).relu()

    g.add(f"slimmable linear {cut} of {n}", [i], run, w=weight(n, width), b=weight(n))


@piece
def embedded(g: Growth) -> None:
    """Positions added along one axis, looked up from a table."""
    i = g.pick(3, 4)
    a = g.axis(i)
    n, width = g.values[i].shape[a], g.values[i].shape[-1]
    if a == g.values[i].dim() - 1:
        raise Dead
    between = g.values[i].dim() - 2 - a

    def run(s: Any, x: Tensor) -> Tensor:
        table = s.a(torch.arange(n))
        return x + table.view(n, *(1 for _ in range(between)), width)

    g.add(f"positions on {a}", [i], run, a=nn.Embedding(n + 2, width))


@piece
def reparametrised(g: Growth) -> None:
    i = g.pick()
    width, n = g.values[i].shape[-1], g.one(WIDTHS[:6])
    how = g.one(["weight_norm", "spectral_norm", "old weight_norm", "standardised"])
    layer = nn.Linear(width, n)
    if how == "weight_norm":
        layer = nn.utils.parametrizations.weight_norm(layer)
    elif how == "spectral_norm":
        layer = nn.utils.parametrizations.spectral_norm(layer)
    elif how == "old weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = nn.utils.weight_norm(layer)

    def run(s: Any, x: Tensor) -> Tensor:
        if how != "standardised":
            return s.a(x)
        w = s.a.weight
        w = (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt()
        return F.linear(x, w, s.a.bias)

    g.add(f"linear with {how} to {n}", [i], run, a=layer)


@piece
def mixture(g: Growth) -> None:
    i = g.pick(2, 3)
    width, e, n = g.values[i].shape[-1], g.one([2, 3, 4]), g.one(WIDTHS[:6])

    def run(s: Any, x: Tensor) -> Tensor:
        shares = s.router(x).softmax(-1)
        y = torch.einsum("...c,ecn->...en", x, s.up).relu()
        return (y * shares.unsqueeze(-1)).sum(-2)

    parts = {"router": nn.Linear(width, e), "up": weight(e, width, n)}
    g.add(f"mixture of {e}", [i], run, **parts)


@piece
def dynamic_weights(g: Growth) -> None:
    """A layer whose weights another value makes."""
    i, j = g.pick(3), g.pick(2)
    width, n = g.values[i].shape[-1], g.one([4, 3, 6])

    def run(s: Any, x: Tensor, c: Tensor) -> Tensor:
        return torch.bmm(x, s.a(c).view(-1, width, n))

    g.add(f"dynamic weights to {n}", [i, j], run, a=nn.Linear(g.values[j].shape[1], width * n))


@piece
def two_to_one(g: Growth) -> None:
    i = g.pick()
    j = like(g, i)
    n, m = g.values[i].shape[-1], g.one(WIDTHS[:6])
    g.add(f"bilinear to {m}", [i, j], lambda s, a, b: s.a(a, b), a=nn.Bilinear(n, n, m))
