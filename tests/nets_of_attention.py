"""Nets of attention heads, in the spellings models use."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import IDS, IMAGE, TOKENS, conv, floats, module, structure, weight
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions, halves apart, as Llama has them."""
    angles = torch.arange(x.shape[-2])[:, None] * table
    angles = torch.cat([angles, angles], -1)
    low, high = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-high, low], -1) * angles.sin()


@structure("head 4", "head-dim 6", args=(TOKENS,))
def literal_view_sizes() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k = (part(x).view(3, 7, 4, 6).transpose(1, 2) for part in (self.q, self.k))
        return self.head((q @ k.mT).softmax(-1).matmul(k).transpose(1, 2).reshape(3, 7, 24))

    return module(forward, q=nn.Linear(8, 24), k=nn.Linear(8, 24), head=nn.Linear(24, 5))


@structure("head 2", "head-dim 6", args=(TOKENS,))
def qkv_viewed_as_three_heads_width() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 12))

    return module(forward, qkv=nn.Linear(8, 36), head=nn.Linear(12, 5))


@structure("head 2", "head-dim 6", "head-dim 6", args=(TOKENS,))
def qkv_chunked() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 6)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.head(attend(q, k, v).transpose(1, 2).flatten(2))

    return module(forward, qkv=nn.Linear(8, 36), head=nn.Linear(12, 5))


@structure("head 2", "head-dim 6", "head-dim 6", args=(TOKENS,))
def qkv_per_head() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 2, 18).transpose(1, 2)
        q, k, v = qkv.split(6, dim=-1)
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, -1))

    return module(forward, qkv=nn.Linear(8, 36), head=nn.Linear(12, 5))


@structure("head 2", "head-dim 6", args=(TOKENS,))
def qkv_bias_joined() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv, bias).view(b, n, 3, 2, 6)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.head((attend(q, k, v)).transpose(1, 2).reshape(b, n, 12))

    return module(
        forward, qkv=weight(36, 8), q_bias=weight(12), v_bias=weight(12), head=nn.Linear(12, 5)
    )


@structure("hidden 8", "hidden 8", "head 2~", "head-dim 4", args=(TOKENS,))
def multihead_attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y, shares = self.attention(x, x, x)
        return self.head(y), shares

    return module(
        forward,
        stem=nn.Linear(8, 8),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 5),
    )


@structure(
    "hidden 8", "hidden 8", "head 2", "head-dim 4", "head-dim 4", args=(TOKENS, floats(3, 9, 6))
)
def multihead_cross_attention() -> nn.Module:
    def forward(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        y, _ = self.attention(
            self.stem(x).transpose(0, 1), *2 * (memory.transpose(0, 1),), need_weights=False
        )
        return self.head(y.transpose(0, 1).relu())

    return module(
        forward,
        stem=nn.Linear(8, 8),
        attention=nn.MultiheadAttention(8, 2, kdim=6, vdim=6),
        head=nn.Linear(8, 5),
    )


@structure("residual 8~", "head 2", "head-dim 4", "hidden 10", args=(TOKENS,))
def transformer_encoder_layer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)))

    return module(
        forward,
        stem=nn.Linear(8, 8),
        head=nn.Linear(8, 5),
        layer=nn.TransformerEncoderLayer(8, 2, 10, batch_first=True),
    )


@structure("kv-head 2", "query-group 3", "head-dim 4", "head-dim 8", args=(TOKENS,))
def grouped_queries_repeated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotated(q, self.inv_freq), rotated(k, self.inv_freq)
        k, v = (t[:, :, None].expand(b, 2, 3, n, 8).reshape(b, 6, n, 8) for t in (k, v))
        scores = (q @ k.transpose(2, 3)) * 8**-0.5
        scores = scores + torch.full((n, n), -1e9).triu(1)
        out = scores.softmax(-1, dtype=torch.float32) @ v
        return self.head(out.transpose(1, 2).contiguous().reshape(b, n, -1))

    return module(
        forward,
        q=nn.Linear(8, 48, bias=False),
        k=nn.Linear(8, 16),
        v=nn.Linear(8, 16),
        head=nn.Linear(48, 5),
        inv_freq=10000 ** -(torch.arange(4) / 4),
    )


@structure("kv-head 2", "query-group 3", "head-dim 4", "head-dim 8", args=(TOKENS,))
def grouped_queries_in_the_kernel() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotated(q, self.inv_freq), rotated(k, self.inv_freq)
        out = attend(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(out.transpose(1, 2).reshape(b, n, 48))

    return module(
        forward,
        q=nn.Linear(8, 48),
        k=nn.Linear(8, 16),
        v=nn.Linear(8, 16),
        head=nn.Linear(48, 5),
        inv_freq=10000 ** -(torch.arange(4) / 4),
    )


@structure("query-group 3", "head-dim 8", "head-dim 8", args=(TOKENS,))
def one_key_for_all_heads() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 3, 8).transpose(1, 2)
        k, v = (part(x).unsqueeze(1).expand(-1, 3, -1, -1) for part in (self.k, self.v))
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 24))

    return module(
        forward, q=nn.Linear(8, 24), k=nn.Linear(8, 8), v=nn.Linear(8, 8), head=nn.Linear(24, 5)
    )


@structure("kv-head 2", "query-group 3", "head-dim 8", "head-dim 8", args=(TOKENS,))
def heads_by_repeat_interleave() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 6, 8).transpose(1, 2)
        k, v = (part(x).view(b, n, 2, 8).transpose(1, 2) for part in (self.k, self.v))
        k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, 1)
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 48))

    return module(
        forward, q=nn.Linear(8, 48), k=nn.Linear(8, 16), v=nn.Linear(8, 16), head=nn.Linear(48, 5)
    )


@structure("head 2", "head-dim 3", "head-dim 6", args=(TOKENS,))
def rotary_interleaved() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, 2, 6).transpose(1, 2) for part in (self.q, self.k, self.v))
        angles = torch.arange(n)[:, None] * self.inv_freq
        cos, sin = (t.repeat_interleave(2, -1) for t in (angles.cos(), angles.sin()))
        q, k = (
            t * cos + torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2) * sin
            for t in (q, k)
        )
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 12))

    return module(
        forward,
        q=nn.Linear(8, 12),
        k=nn.Linear(8, 12),
        v=nn.Linear(8, 12),
        head=nn.Linear(12, 5),
        inv_freq=10000 ** -(torch.arange(3) / 3),
    )


@structure("head 2", "head-dim 3", "head-dim 6", args=(TOKENS,))
def rotary_as_complex_numbers() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, 2, 6) for part in (self.q, self.k, self.v))
        angles = torch.arange(n)[:, None] * self.inv_freq
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.reshape(b, n, 2, 3, 2)) * turn).flatten(3)
            for t in (q, k)
        )
        out = attend(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
        return self.head(out.reshape(b, n, 12))

    return module(
        forward,
        q=nn.Linear(8, 12),
        k=nn.Linear(8, 12),
        v=nn.Linear(8, 12),
        head=nn.Linear(12, 5),
        inv_freq=10000 ** -(torch.arange(3) / 3),
    )


@structure("head 4", "head-dim 5", args=(TOKENS,))
def slopes_from_head_numbers() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
        slopes = 2.0 ** -(8 / 4 * torch.arange(1, 5))
        steps = torch.arange(n)[None] - torch.arange(n)[:, None]
        bias = slopes[:, None, None] * steps
        scores = torch.baddbmm(
            bias.expand(b, 4, n, n).reshape(b * 4, n, n),
            q.reshape(b * 4, n, 5),
            k.reshape(b * 4, n, 5).transpose(1, 2),
            alpha=5**-0.5,
        )
        out = torch.bmm(scores.softmax(-1), v.reshape(b * 4, n, 5)).view(b, 4, n, 5)
        return self.head(out.transpose(1, 2).reshape(b, n, 20))

    return module(forward, qkv=nn.Linear(8, 60), head=nn.Linear(20, 5))


@structure("head 2", "head-dim 6", args=(floats(3, 9, 8),))
def relative_position_table() -> nn.Module:
    places = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + 2
    index = (apart * torch.tensor([5, 1])).sum(-1)

    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(9, 9, -1).permute(2, 0, 1).contiguous()
        scores = (q * 6**-0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, 12))

    return module(
        forward, qkv=nn.Linear(8, 36), table=weight(25, 2), index=index, head=nn.Linear(12, 5)
    )


@structure("head 2", "head-dim 5", "head-dim 6", args=(TOKENS,))
def attention_by_einsum() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q = torch.einsum("bnc,chd->bnhd", x, self.q)
        k = torch.einsum("...c,chd->...hd", x, self.k)
        v = torch.einsum("bnc,che->bnhe", x, self.v)
        shares = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return torch.einsum("bhqk,bkhe,heo->bqo", shares, v, self.o)

    return module(
        forward, q=weight(8, 2, 5), k=weight(8, 2, 5), v=weight(8, 2, 6), o=weight(2, 6, 5)
    )


@structure("head 2", "head-dim 6~", "head-dim 5", args=(TOKENS,))
def linear_attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (F.elu(part(x).view(b, n, 2, 6)) + 1 for part in (self.q, self.k))
        v = self.v(x).view(b, n, 2, 5)
        summary = torch.einsum("bnhd,bnhe->bhde", k, v)
        scale = torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
        out = torch.einsum("bnhd,bhde->bnhe", q, summary) / scale.unsqueeze(-1)
        return self.head(out.reshape(b, n, 10))

    return module(
        forward, q=nn.Linear(8, 12), k=nn.Linear(8, 12), v=nn.Linear(8, 10), head=nn.Linear(10, 5)
    )


@structure("head-dim 6~", "head-dim 9", args=(TOKENS,))
def sigmoids_contracted_with_each_other() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        scores = self.a(x).sigmoid() @ self.b(x).sigmoid().transpose(1, 2)
        return self.head(scores @ (self.gate(x).sigmoid() * self.up(x)))

    return module(
        forward,
        a=nn.Linear(8, 6),
        b=nn.Linear(8, 6),
        gate=nn.Linear(8, 9),
        up=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
    )


@structure("residual 8~", "head 2", "head-dim 3", args=(IMAGE,))
def shifted_windows() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 3, 3, w // 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, c)
        q, k, v = self.qkv(y).reshape(-1, 9, 3, 2, 3).permute(2, 0, 3, 1, 4)
        y = self.out((q @ k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        y = y.view(b, h // 3, w // 3, 3, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.head(x + torch.roll(y, (1, 1), (1, 2)))

    return module(
        forward,
        stem=conv(4, 8),
        norm=nn.LayerNorm(8),
        qkv=nn.Linear(8, 18),
        out=nn.Linear(6, 8),
        head=nn.Linear(8, 5),
    )


@structure("residual 12~", "head 3", "head-dim 4", "head-dim 4", "hidden 10", args=(TOKENS,))
def gpt2_linear() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, _ = x.shape
        q, k, v = self.attention(self.a(x)).split(12, dim=2)
        q, k, v = (t.view(b, n, -1, 4).transpose(1, 2) for t in (q, k, v))
        y = attend(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1).contiguous()
        x = x + self.project(y)
        x = x + self.down(F.gelu(self.up(self.b(x)), approximate="tanh"))
        return self.head(x)

    return module(
        forward,
        stem=nn.Linear(8, 12),
        a=nn.LayerNorm(12),
        attention=Conv1D(36, 12),
        project=Conv1D(12, 12),
        b=nn.LayerNorm(12),
        up=Conv1D(10, 12),
        down=Conv1D(12, 10),
        head=nn.Linear(12, 5),
    )


@structure("other 6~", "head 2", "head-dim 5", "head-dim 5", args=(TOKENS,))
def memory_slots() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 2, 5).transpose(1, 2)
        k = self.keys.view(1, 6, 2, 5).transpose(1, 2).expand(b, -1, -1, -1)
        v = self.values.view(1, 6, 2, 5).transpose(1, 2).expand(b, -1, -1, -1)
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 10))

    return module(
        forward, q=nn.Linear(8, 10), keys=weight(6, 10), values=weight(6, 10), head=nn.Linear(10, 5)
    )


@structure("other 4~", "residual 12", "head 2", "head-dim 6", "head-dim 6", args=(IDS,))
def prompt_tokens() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        x = torch.cat([self.prompt.expand(ids.shape[0], -1, -1), self.embed(ids)], 1)
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 2, 6).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = x + self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, 12))
        return self.head(x.mean(1))

    return module(
        forward,
        prompt=weight(1, 4, 12),
        embed=nn.Embedding(11, 12),
        qkv=nn.Linear(12, 36),
        out=nn.Linear(12, 12),
        head=nn.Linear(12, 5),
    )


@structure("head 2", "head-dim 6~", args=(TOKENS,))
def cross_covariance_attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 4, 1).unbind(0)
        shares = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.heat
        y = (shares.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, 12)
        return self.head(y)

    return module(forward, qkv=nn.Linear(8, 36), heat=weight(2, 1, 1), head=nn.Linear(12, 5))


@structure("head 4", "head 4", "head-dim 6", "head-dim 6", args=(TOKENS,))
def talking_heads() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 4, 6).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        s = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.head((s @ v).transpose(1, 2).reshape(b, n, 24))

    return module(forward, qkv=nn.Linear(8, 72), mix=nn.Linear(4, 4), head=nn.Linear(24, 5))


@structure("head 4", "head-dim 6", "head-dim 6~", args=(TOKENS,))
def normalised_queries() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 4, 6).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.head(
            attend(self.qn(q), self.kn(k), v, is_causal=True).transpose(1, 2).reshape(b, n, 24)
        )

    return module(
        forward, qkv=nn.Linear(8, 72), qn=nn.RMSNorm(6), kn=nn.LayerNorm(6), head=nn.Linear(24, 5)
    )


@structure("head 3~", "head-dim 4", "head-dim 5~", args=(TOKENS,))
def mask_bias_over_sigmoid_values() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (p(x).view(b, n, 3, 4).transpose(1, 2) for p in (self.q, self.k))
        v = (self.v(x).view(b, n, 3, 5).sigmoid() + self.shift).transpose(1, 2)
        return self.head(
            torch.einsum("bhnd,bmhd->bnm", attend(q, k, v, attn_mask=self.bias), v.transpose(1, 2))
        )

    return module(
        forward,
        q=nn.Linear(8, 12),
        k=nn.Linear(8, 12),
        v=nn.Linear(8, 15),
        shift=weight(5),
        bias=weight(3, 1, 1),
        head=nn.Linear(7, 5),
    )


@structure("head-dim 6", "head-dim 9", "other 3~", args=(TOKENS,))
def learned_queries_flattened() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b = x.shape[0]
        q = self.queries.expand(b, -1, -1)
        y = attend(q, self.k(x), self.v(x))
        return self.head(y.flatten(1)) + self.tail(y.reshape(b, -1, 9).mean(1))

    return module(
        forward,
        queries=weight(1, 3, 6),
        k=nn.Linear(8, 6),
        v=nn.Linear(8, 9),
        head=nn.Linear(27, 5),
        tail=nn.Linear(9, 5),
    )


@structure("head 3", "head-dim 4", "head-dim 4", args=(TOKENS,))
def heads_in_the_batch() -> nn.Module:
    """Batch and heads as one axis, with masks and tables repeated along it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            t.view(b, n, 3, 4).transpose(1, 2).reshape(-1, n, 4) for t in self.qkv(x).chunk(3, -1)
        )
        scores = torch.baddbmm(x.new_zeros(b * 3, n, n), q, k.transpose(1, 2))
        steps = torch.arange(n).expand(q.shape[0], n, n)
        table = self.table.repeat(q.shape[0] // 3, 1, 1)
        scores = (
            scores.gather(-1, steps) + table + torch.full((n, n), -9.0).triu(1).expand_as(scores)
        )
        y = (scores.softmax(-1) @ v).view(b, 3, n, 4).transpose(1, 2)
        return self.head(y.reshape(b, n, 12))

    return module(forward, qkv=nn.Linear(8, 36), table=weight(3, 7, 7), head=nn.Linear(12, 5))
