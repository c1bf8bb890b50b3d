"""Generative networks as they are published, small: timestep tables, latents in pairs, modulation
in parts, gates. Each is a class with an `example()` of its input."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(steps: Tensor, width: int) -> Tensor:
    """Sines and cosines of frequencies that follow from the width."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
    angles = steps[:, None].float() * exponent.exp()[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ResnetBlock(nn.Module):
    def __init__(self, c1: int, c2: int, temb: int | None, groups: int = 8):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c1), nn.Conv2d(c1, c2, 3, padding=1)
        self.time = nn.Linear(temb, c2) if temb else None
        self.norm2, self.conv2 = nn.GroupNorm(groups, c2), nn.Conv2d(c2, c2, 3, padding=1)
        self.short = nn.Conv2d(c1, c2, 1) if c1 != c2 else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None and temb is not None:
            h = h + self.time(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.short is None else self.short(x)) + h


class SpatialAttention(nn.Module):
    def __init__(self, c: int, head: int = 8):
        super().__init__()
        self.heads, self.norm = c // head, nn.GroupNorm(8, c)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x).view(b, c, h * w).transpose(1, 2)
        q, k, v = self.to_q(y), self.to_k(y), self.to_v(y)
        width = k.shape[-1] // self.heads
        q, k, v = (t.view(b, -1, self.heads, width).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y = self.to_out(y.reshape(b, -1, self.heads * width))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class UNetLike(nn.Module):
    """UNet2DModel: a timestep table, resnets with GroupNorm, attention, down, middle and up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width, temb = width, width * 4
        self.linear_1, self.linear_2 = nn.Linear(width, temb), nn.Linear(temb, temb)
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.reduce = ResnetBlock(width, width, temb), nn.Conv2d(width, width, 3, 2, 1)
        self.down2 = ResnetBlock(width, 2 * width, temb)
        self.mid1, self.attention = ResnetBlock(32, 32, temb), SpatialAttention(32)
        self.mid2 = ResnetBlock(32, 32, temb)
        self.up2, self.grow = ResnetBlock(64, 32, temb), nn.Conv2d(32, 32, 3, padding=1)
        self.up1 = ResnetBlock(48, width, temb)
        self.norm_out, self.conv_out = nn.GroupNorm(8, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.linear_2(F.silu(self.linear_1(timestep_embedding(t, self.width))))
        x = self.conv_in(x)
        h1 = self.down1(x, emb)
        h2 = self.down2(self.reduce(h1), emb)
        h = self.mid2(self.attention(self.mid1(h2, emb)), emb)
        h = self.grow(F.interpolate(self.up2(torch.cat([h, h2], 1), emb), scale_factor=2.0))
        h = self.up1(torch.cat([h, h1], 1), emb)
        return self.conv_out(F.silu(self.norm_out(h)))

    @staticmethod
    def example(batch: int = 2) -> Any:
        return torch.randn(batch, 3, 16, 16), torch.randint(1, 900, (batch,))


class AutoencoderLike(nn.Module):
    """AutoencoderKL: the encoder gives means and log variances, a decoder reads a sample."""

    def __init__(self, latent: int = 4, sample: bool = False) -> None:
        super().__init__()
        self.sample = sample
        self.conv_in, self.enc1 = nn.Conv2d(3, 16, 3, padding=1), ResnetBlock(16, 16, None)
        self.down, self.enc2 = nn.Conv2d(16, 16, 3, 2, 1), ResnetBlock(16, 32, None)
        self.mid = SpatialAttention(32)
        self.norm1, self.moments = nn.GroupNorm(8, 32), nn.Conv2d(32, 2 * latent, 3, padding=1)
        self.quant = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant = nn.Conv2d(latent, latent, 1)
        self.dec_in, self.dec1 = nn.Conv2d(latent, 32, 3, padding=1), ResnetBlock(32, 32, None)
        self.grow, self.dec2 = nn.Conv2d(32, 32, 3, padding=1), ResnetBlock(32, 16, None)
        self.norm2, self.conv_out = nn.GroupNorm(8, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enc2(self.down(self.enc1(self.conv_in(x))))
        h = self.quant(self.moments(F.silu(self.norm1(self.mid(h)))))
        mean, logvar = torch.chunk(h, 2, dim=1)
        std = torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0))
        z = mean + 0.5 * std if self.sample else mean
        h = self.dec1(self.dec_in(self.post_quant(z)))
        h = self.dec2(self.grow(F.interpolate(h, scale_factor=2.0)))
        return self.conv_out(F.silu(self.norm2(h)))

    @staticmethod
    def example(batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, 16, 16)


class SamplingAutoencoder(AutoencoderLike):
    """The same with the log variances read."""

    def __init__(self) -> None:
        super().__init__(sample=True)


class ConformerLike(nn.Module):
    """Conformer's convolution module: a GLU after the first, a depthwise one, BatchNorm."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(10, width), nn.LayerNorm(width)
        self.up = nn.Conv1d(width, 2 * width, 1)
        self.deep = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.batch, self.down = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.ff1, self.ff2 = nn.Linear(width, 64), nn.Linear(64, width)
        self.out = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        h = F.glu(self.up(self.norm(x).transpose(1, 2)), dim=1)
        x = x + self.down(F.silu(self.batch(self.deep(h)))).transpose(1, 2)
        return self.out(x + self.ff2(F.silu(self.ff1(x))))

    @staticmethod
    def example(batch: int = 2) -> Tensor:
        return torch.randn(batch, 12, 10)


class DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        s1, g1, a1, s2, g2, a2 = self.ada(F.silu(c)).chunk(6, dim=1)
        h = self.norm1(x) * (1 + g1[:, None]) + s1[:, None]
        b, n, w = h.shape
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, w // self.heads).unbind(2)
        h = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + a1[:, None] * self.proj(h.transpose(1, 2).reshape(b, n, w))
        h = self.norm2(x) * (1 + g2[:, None]) + s2[:, None]
        return x + a2[:, None] * self.fc2(F.gelu(self.fc1(h)))


class DiTLike(nn.Module):
    """A diffusion transformer: six parts of one linear modulate each block (AdaLN)."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.table_width = 16
        self.patch, self.time1 = nn.Linear(12, width), nn.Linear(16, width)
        self.time2 = nn.Linear(width, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(2))
        self.final, self.out = nn.Linear(width, 2 * width), nn.Linear(width, 12)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time2(F.silu(self.time1(timestep_embedding(t, self.table_width))))
        x = self.patch(x)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final(F.silu(c)).chunk(2, dim=1)
        return self.out(self.norm(x) * (1 + scale[:, None]) + shift[:, None])

    @staticmethod
    def example(batch: int = 2) -> Any:
        return torch.randn(batch, 6, 12), torch.randint(1, 900, (batch,))
