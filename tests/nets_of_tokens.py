"""Nets of linear layers, recurrences and statistics over tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from nets import IDS, TOKENS, floats, module, structure, weight
from torch import Tensor, nn


@structure("hidden 6", "hidden 10", args=(TOKENS,))
def concat_on_the_last_axis() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], -1))

    return module(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 10), head=nn.Linear(16, 5))


@structure("hidden 12", args=(TOKENS,))
def concat_of_tokens() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(x.relu())[:, 0]

    return module(
        forward,
        embed=nn.Linear(8, 12),
        first=weight(1, 1, 12),
        positions=weight(1, 8, 12),
        head=nn.Linear(12, 5),
    )


@structure("hidden 6", "hidden 10", "hidden 12", args=(TOKENS,))
def split_by_literal_sizes() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b, c = self.wide(x).split([6, 10, 12], dim=-1)
        return self.a(a.relu()) + self.b(b.tanh()) + self.c(c)

    return module(
        forward, wide=nn.Linear(8, 28), a=nn.Linear(6, 5), b=nn.Linear(10, 5), c=nn.Linear(12, 5)
    )


@structure("hidden 3", "hidden 5", args=(TOKENS,))
def chunks_cut_twice() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.wide(x)
        a, b = wide.chunk(2, dim=2)
        c, d = wide.tensor_split([5], dim=-1)
        return self.head(a * b) + self.c(c) + self.d(d)

    return module(
        forward, wide=nn.Linear(8, 16), head=nn.Linear(8, 5), c=nn.Linear(5, 5), d=nn.Linear(11, 5)
    )


@structure("hidden 7", args=(TOKENS,))
def unbind_into_factors() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b, c = self.wide(x).view(-1, 7, 3, 7).unbind(2)
        return self.head(a * b + c)

    return module(forward, wide=nn.Linear(8, 21), head=nn.Linear(7, 5))


@structure("hidden 6", "hidden 10", args=(TOKENS,))
def slices_and_narrow() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.wide(x)
        same = wide[..., 0:16].narrow(-1, 0, 16)
        return self.a(same[..., :-10]) + self.b(wide[:, :, -10:]) + self.a(wide.narrow(2, 0, 6))

    return module(forward, wide=nn.Linear(8, 16), a=nn.Linear(6, 5), b=nn.Linear(10, 5))


@structure("hidden 6", args=(TOKENS,))
def strided_slices() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.wide(x)
        return self.head(torch.cat([wide[..., ::2], wide[..., 1:12:2].relu()], -1))

    return module(forward, wide=nn.Linear(8, 12), head=nn.Linear(12, 5))


@structure("hidden 3", "hidden 6", args=(TOKENS,))
def features_repeated_and_tiled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x).repeat(1, 1, 3)
        return self.head(a * self.b(x))

    return module(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 18), head=nn.Linear(18, 5))


@structure("hidden 10", args=(TOKENS,))
def swiglu() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    return module(forward, gate=nn.Linear(8, 10), up=nn.Linear(8, 10), down=nn.Linear(10, 5))


@structure("hidden 10", args=(TOKENS,))
def swiglu_fused() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    return module(forward, both=nn.Linear(8, 20), down=nn.Linear(10, 5))


@structure("hidden 9", args=(TOKENS,))
def gated_linear_unit() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.glu(self.both(x), -1))

    return module(forward, both=nn.Linear(8, 18), down=nn.Linear(9, 5))


@structure("residual 12~", "hidden 10", "hidden 9", args=(TOKENS,))
def token_mixer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.up(self.down(self.a(x).transpose(1, 2)).relu()).transpose(1, 2)
        x = x + self.second(self.first(self.b(x)).relu())
        return self.head(x)

    return module(
        forward,
        stem=nn.Linear(8, 12),
        a=nn.LayerNorm(12),
        b=nn.LayerNorm(12, bias=False),
        down=nn.Linear(7, 9),
        up=nn.Linear(9, 7),
        first=nn.Linear(12, 10),
        second=nn.Linear(10, 12),
        head=nn.Linear(12, 5),
    )


@structure("hidden 9", args=(TOKENS,))
def cosine_similarity() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x)[:, :, None], self.b(x)[:, None], dim=-1)

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(8, 9))


@structure("hidden 12", args=(IDS,))
def tied_embeddings() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return self.decode(self.mix(self.embed(ids)).relu())

    made = module(
        forward, embed=nn.Embedding(11, 12), mix=nn.Linear(12, 12), decode=nn.Linear(12, 11)
    )
    made.decode.weight = made.embed.weight
    return made


@structure("hidden 9", args=(IDS,))
def embedding_with_padding() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        keep = (ids != 0).unsqueeze(-1)
        return self.head((x * keep).sum(1) / keep.sum(1).clamp_min(1))

    return module(
        forward,
        embed=nn.Embedding(11, 9, padding_idx=0),
        places=nn.Embedding(20, 9),
        head=nn.Linear(9, 5),
    )


@structure("residual 12", "hidden 3", "other 2", args=(TOKENS,))
def low_rank_adapters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x) + x @ self.down @ self.up * 0.5
        merged = self.head.weight + self.out @ self.into
        return F.linear(x.relu(), merged, self.head.bias)

    return module(
        forward,
        a=nn.Linear(8, 12),
        down=weight(8, 3),
        up=weight(3, 12),
        head=nn.Linear(12, 5),
        out=weight(5, 2),
        into=weight(2, 12),
    )


@structure("expert 4~", "hidden 6", args=(TOKENS,))
def soft_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        hidden = torch.einsum("bnc,ech->bneh", x, self.up).relu()
        return torch.einsum("bneh,eho,bne->bno", hidden, self.down, shares)

    return module(forward, router=nn.Linear(8, 4), up=weight(4, 8, 6), down=weight(4, 6, 5))


@structure("hidden 6", args=(TOKENS,))
def sinusoids_from_sizes() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        rates = torch.exp(torch.arange(0, 12, 2) * (-math.log(1e4) / 12))
        angles = torch.arange(x.shape[1])[:, None] * rates
        return self.head((x + torch.cat([angles.sin(), angles.cos()], -1)).relu())

    return module(forward, stem=nn.Linear(8, 12), head=nn.Linear(12, 5))


@structure("hidden 10", args=(TOKENS,))
def learned_mask_token() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        missing = x[..., :1] > 0
        x = torch.where(missing, self.token.type_as(x), self.stem(x))
        return self.head(x.masked_fill(x.detach() < -1, 0.0))

    return module(forward, stem=nn.Linear(8, 10), token=weight(10), head=nn.Linear(10, 5))


@structure("hidden 9", "hidden 6", args=(TOKENS,))
def stacked_and_summed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.stack([self.a(x), self.b(x).relu()], dim=1).sum(1)
        return self.head(torch.stack(list(self.c(x).movedim(1, 0)), 1))

    return module(
        forward, a=nn.Linear(8, 9), b=nn.Linear(8, 9), c=nn.Linear(9, 6), head=nn.Linear(6, 5)
    )


@structure("hidden 6", "hidden 7", args=(TOKENS,))
def bilinear_form() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.form(self.a(x), self.b(x).tanh())

    return module(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 7), form=nn.Bilinear(6, 7, 5))


@structure("hidden 9", "other 3", args=(TOKENS,))
def channels_picked_by_number() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x)[..., [0, 3, 5]]
        return self.head(self.b(a).relu()) + self.a(x).flip(-1)[..., :5]

    return module(forward, a=nn.Linear(8, 10), b=nn.Linear(3, 9), head=nn.Linear(9, 5))


@structure("hidden 9", "residual 8~", args=(TOKENS, floats(3, 6)))
def adaptive_modulation() -> nn.Module:
    def forward(self: Any, x: Tensor, c: Tensor) -> Tensor:
        x = self.stem(x)
        shift, scale, gate = self.condition(F.silu(c))[:, None].chunk(3, -1)
        y = self.norm(x) * (1 + scale) + shift
        x = x + gate * self.down(F.gelu(self.up(y)))
        return self.head(x)

    return module(
        forward,
        stem=nn.Linear(8, 8),
        condition=nn.Linear(6, 24),
        norm=nn.LayerNorm(8, elementwise_affine=False),
        up=nn.Linear(8, 9),
        down=nn.Linear(9, 8),
        head=nn.Linear(8, 5),
    )


@structure("hidden 7", args=(floats(3, 9),))
def tied_autoencoder() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.w, self.b).relu(), self.w.t())

    return module(forward, w=weight(7, 9), b=weight(7))


@structure("head-dim 6", "head-dim 9", args=(TOKENS,))
def generated_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        w = self.make(x.mean(1)).view(-1, 6, 9)
        return self.head(torch.bmm(self.stem(x), w.transpose(1, 2)).relu())

    return module(forward, make=nn.Linear(8, 54), stem=nn.Linear(8, 9), head=nn.Linear(6, 5))


@structure("hidden 2~", "hidden 9", args=(TOKENS,))
def maxout() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.head(y.view(*y.shape[:-1], 9, 2).amax(-1))

    return module(forward, up=nn.Linear(8, 18), head=nn.Linear(9, 5))


@structure("hidden 9", args=(floats(3, 5), torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])))
def graph_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x)
        out = torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]])
        out = out.scatter_add(0, edges[1][:, None].expand(-1, 9), h[edges[0]].relu())
        return self.head(out.relu())

    return module(forward, a=nn.Linear(5, 9), head=nn.Linear(9, 4))


@structure("hidden 2", "hidden 3", "hidden 4", args=(TOKENS,))
def deep_reshape_chain() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)  # 24
        y = y.view(-1, 7, 2, 3, 4).permute(0, 1, 4, 2, 3).reshape(-1, 7, 8, 3)  # (4,2),3
        y = y.transpose(2, 3).reshape(-1, 7, 24)
        return self.head(y) + self.tail(y.view(-1, 7, 12, 2).sum(-1))

    return module(forward, up=nn.Linear(8, 24), head=nn.Linear(24, 5), tail=nn.Linear(12, 5))


@structure(args=(TOKENS,))
def misaligned_views() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        return (
            self.a(y.view(-1, 7, 6, 4).sum(-1))
            + self.b(y.view(-1, 7, 4, 6).sum(-1))
            + self.c(y.view(-1, 14, 12)).sum(1, keepdim=True)
        )

    return module(
        forward, up=nn.Linear(8, 24), a=nn.Linear(6, 5), b=nn.Linear(4, 5), c=nn.Linear(12, 5)
    )


@structure(args=(TOKENS,))
def windows_over_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        return (
            self.a(y.unfold(-1, 3, 2)[..., 0])
            + self.b(y.diff(dim=-1))
            + self.c(y.cumsum(-1).roll(1, -1))
        )

    return module(
        forward, up=nn.Linear(8, 9), a=nn.Linear(4, 5), b=nn.Linear(8, 5), c=nn.Linear(9, 5)
    )


@structure("hidden 4", "hidden 6", args=(TOKENS,))
def slimmable_weight() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = F.linear(x, self.w[:6], self.b[:6]).relu()
        b = F.linear(x, self.w, self.b).relu()
        return F.linear(a, self.o[:, :6]) + F.linear(b, self.o)

    return module(forward, w=weight(10, 8), b=weight(10), o=weight(5, 10))


@structure("hidden 2", "hidden 3", args=(TOKENS,))
def split_singles_and_uneven_chunks() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b, c = self.up(x).chunk(3, -1)
        one, two = self.two(x).split(1, -1)
        return self.a(a) + self.a(b) * one + self.c(c) * two

    return module(
        forward, up=nn.Linear(8, 8), two=nn.Linear(8, 2), a=nn.Linear(3, 5), c=nn.Linear(2, 5)
    )


@structure("hidden 6", "hidden 7", "hidden 9", args=(TOKENS,))
def tensordot_and_inner() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        a = torch.tensordot(x, self.w, ([2], [0]))
        return self.head(a.relu()) + self.tail(torch.inner(x, self.v).relu())

    return module(
        forward,
        stem=nn.Linear(8, 9),
        w=weight(9, 6),
        v=weight(7, 9),
        head=nn.Linear(6, 5),
        tail=nn.Linear(7, 5),
    )


@structure("residual 9", args=(TOKENS,))
def highway() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body, gate in ((self.a, self.s), (self.b, self.t)):
            share = gate(x).sigmoid()
            x = share * body(x).relu() + (1 - share) * x
        return self.head(x)

    made = {name: nn.Linear(9, 9) for name in "asbt"}
    return module(forward, stem=nn.Linear(8, 9), head=nn.Linear(9, 5), **made)


@structure("hidden 6", "hidden 9", "hidden 7", args=(floats(3, 8),))
def stacked_and_split_by_name() -> nn.Module:
    """hstack, column_stack, hsplit: cat and split of [batch, features] under other names."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = torch.hsplit(self.c(x).relu(), 2)
        y = self.head(torch.hstack([self.a(x).relu(), self.b(x).tanh()]))
        z = self.tail(torch.column_stack([a * b, a]))
        return torch.vstack([y, z])

    parts = {"a": nn.Linear(8, 6), "b": nn.Linear(8, 9), "c": nn.Linear(8, 14)}
    return module(forward, head=nn.Linear(15, 5), tail=nn.Linear(14, 5), **parts)
