"""Nets that mix along an axis by other means than a layer: kernels of one, Fourier transforms,
filters made for each sample."""

from __future__ import annotations

from typing import Any

import torch
from nets import IMAGE, TOKENS, conv, floats, module, structure, weight
from torch import Tensor, nn
from torch.nn import functional as F


@structure("hidden 10~", args=(TOKENS,))
def spatial_gating() -> nn.Module:
    """gMLP: a kernel of one over tokens leaves the features, its last axis, free."""

    def forward(self: Any, x: Tensor) -> Tensor:
        u, v = F.gelu(self.wide(x)).chunk(2, -1)
        return x + self.narrow(u * self.tokens(self.norm(v)))

    parts = {"wide": nn.Linear(8, 20), "norm": nn.LayerNorm(10), "narrow": nn.Linear(10, 8)}
    return module(forward, tokens=nn.Conv1d(7, 7, 1), **parts)


@structure("channel 6", "hidden 9", args=(TOKENS,))
def kernels_of_one_and_of_three() -> nn.Module:
    """[batch, tokens, features] as an image: free along features only where the kernel is 1."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(self.wide(x).relu()[:, None])  # kernel (3, 1) over (tokens, features)
        return self.head(self.down(y.relu())[:, 0])

    return module(
        forward,
        wide=nn.Linear(8, 9),
        up=nn.Conv2d(1, 6, (3, 1), padding=(1, 0)),
        down=nn.Conv2d(6, 1, 1),
        head=nn.Linear(9, 5),
    )


@structure("channel 6", "hidden 4~", args=(IMAGE,))
def filters_mixed_for_each_sample() -> nn.Module:
    """Conditional convolution: the batch is the number of groups."""

    def forward(self: Any, x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        shares = self.route(x.mean((2, 3))).softmax(-1)
        kernel = (shares @ self.experts.flatten(1)).view(-1, 4, 3, 3)
        y = F.conv2d(x.reshape(1, -1, height, width), kernel, padding=1, groups=rows)
        return self.head(y.view(rows, 6, height, width).relu())

    return module(forward, route=nn.Linear(4, 4), experts=weight(4, 6, 4, 3, 3), head=conv(6, 5))


@structure("channel 6", "channel 9", "residual 6", args=(IMAGE,))
def spectral_convolution() -> nn.Module:
    """A Fourier neural operator: channels mixed by complex weights, for each low frequency."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.lift(x)
        waves = torch.fft.rfft2(x)[:, :, :3, :3]
        mixed = torch.einsum("bixy,ioxy->boxy", waves, torch.view_as_complex(self.weight))
        y = torch.fft.irfft2(mixed, s=x.shape[-2:])
        return self.head(self.project(F.gelu(y + self.skip(x))).relu())

    return module(
        forward,
        lift=conv(4, 6, 1),
        weight=weight(6, 6, 3, 3, 2),
        skip=conv(6, 6, 1),
        project=conv(6, 9, 1),
        head=conv(9, 5, 1),
    )


@structure("channel 6", args=(IMAGE,))
def real_and_imaginary_parts_apart() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(self.stem(x), dim=2)
        return self.real(waves.real) + self.imag(waves.imag)

    return module(forward, stem=conv(4, 6), real=conv(6, 5), imag=conv(6, 5))


@structure("channel 6", args=(floats(3, 4, 12),))
def long_convolution_by_transform() -> nn.Module:
    """Hyena: a filter as long as the sequence, multiplied in the frequency domain."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        waves = torch.fft.rfft(x, n=24) * torch.fft.rfft(self.filter, n=24)
        return self.head(torch.fft.irfft(waves, n=24)[..., :12] + x * self.skip[:, None])

    parts = {"stem": nn.Conv1d(4, 6, 1), "head": nn.Conv1d(6, 5, 1)}
    return module(forward, filter=weight(6, 12), skip=weight(6), **parts)
