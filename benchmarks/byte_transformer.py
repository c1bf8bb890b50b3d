"""A byte-level language model, trained in minutes on the docstrings of the standard library."""

from __future__ import annotations

import math
from functools import cache

import corpus
import torch
from corpus import Split
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT = 128
BYTES = 256


class Block(nn.Module):
    """Attention and two linear layers, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteTransformer(nn.Module):
    """Decoder-only, norms first: int64 (batch, length <= 128) -> logits (batch, length, 256)."""

    def __init__(
        self, width: int = 128, layers: int = 4, heads: int = 8, hidden: int = 512
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding(ids) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@cache
def text(split: Split) -> Tensor:
    """The paragraphs of a split, one a line, as int64 bytes (N)."""
    data = "\n".join(corpus.paragraphs(split)).encode()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def windows(split: Split, count: int, seed: int = 0) -> Tensor:
    """`count` stretches of text of 128 bytes and the one that follows: int64 (count, 129)."""
    data = text(split)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - CONTEXT, (count, 1), generator=generator)
    return data[starts + torch.arange(CONTEXT + 1)]


def trained(seed: int = 0, steps: int = 600, batch_size: int = 12) -> ByteTransformer:
    """A ByteTransformer trained from a seeded start, in eval mode: one to two minutes on one core.

    Muon for the matrices of the blocks (Jordan et al., 2024), AdamW for the rest: in so few steps
    AdamW alone stays near the statistics of byte pairs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteTransformer()
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1, (i + 1) / 30, 1.02 - i / steps))
        for o in optimizers
    ]
    data = windows("train", steps * batch_size, seed)
    for part in data.split(batch_size):
        model.zero_grad()
        bits_per_byte(model(part[:, :-1]), part).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    return model.eval()


def bits_per_byte(logits: Tensor, stretch: Tensor) -> Tensor:
    """Mean -log2 of what is given to each byte of `stretch` (batch, length + 1) but the first."""
    return F.cross_entropy(logits.flatten(0, 1), stretch[:, 1:].flatten()) / math.log(2)


def order_one_bits() -> float:
    """Bits per held-out byte of a table of byte pairs counted on the training text."""
    counts = torch.full((BYTES, BYTES), 0.1)
    data, held_out = text("train"), text("held-out")
    counts.index_put_((data[:-1], data[1:]), torch.ones(len(data) - 1), accumulate=True)
    logits = (counts / counts.sum(1, keepdim=True)).log()
    return F.cross_entropy(logits[held_out[:-1]], held_out[1:]).item() / math.log(2)
