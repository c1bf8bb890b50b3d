"""Nets of torch's own transformer layers, and fused projections in rarer layouts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import TOKENS, floats, module, structure
from torch import Tensor, nn


@structure(
    "residual 8~", "head 2", "head 2", "head-dim 4", "head-dim 4", "hidden 9", "hidden 9",
    args=(TOKENS,),
)  # fmt: skip
def transformer_encoder() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)))

    layer = nn.TransformerEncoderLayer(8, 2, 9, batch_first=True, norm_first=True)
    return module(
        forward,
        stem=nn.Linear(8, 8),
        encoder=nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False),
        head=nn.Linear(8, 5),
    )


@structure(
    "residual 8~", "head 2", "head 2", "head-dim 4", "head-dim 4", "hidden 9",
    args=(TOKENS, floats(3, 4, 8)),
)  # fmt: skip
def transformer_decoder_layer() -> nn.Module:
    def forward(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        mask = torch.full((7, 7), -torch.inf).triu(1)
        return self.head(self.layer(self.stem(x), self.stem(memory), tgt_mask=mask))

    return module(
        forward,
        stem=nn.Linear(8, 8),
        layer=nn.TransformerDecoderLayer(8, 2, 9, batch_first=True),
        head=nn.Linear(8, 5),
    )


@structure("head 2", "head-dim 6", args=(TOKENS,))
def qkv_innermost() -> nn.Module:
    """Heads, width, and which of the three: as einops writes `(h d k)`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 2, 6, 3).permute(4, 0, 2, 1, 3)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).reshape(b, n, 12))

    return module(forward, qkv=nn.Linear(8, 36), head=nn.Linear(12, 5))


@structure("kv-head 2", "query-group 3", "head-dim 4", args=(TOKENS,))
def qkv_by_groups() -> nn.Module:
    """Each group: its query heads, then a key and a value (Falcon, GPT-NeoX with groups)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        fused = self.qkv(x).view(b, n, 2, 5, 4)
        q, k, v = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
        q, k, v = (t.expand(b, n, 2, 3, 4).flatten(2, 3).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).reshape(b, n, 24))

    return module(forward, qkv=nn.Linear(8, 40), head=nn.Linear(24, 5))
