"""Nets of norms and statistics over channels, and of normalised weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import IMAGE, TOKENS, conv, floats, module, structure, weight
from torch import Tensor, nn


@structure("channel 6", "channel 8", args=(floats(3, 4, 9),))
def batch_norm_in_one_dimension() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.second(self.mix(x).mean(-1)).tanh())

    return module(
        forward,
        stem=nn.Conv1d(4, 6, 3),
        norm=nn.BatchNorm1d(6),
        mix=nn.Conv1d(6, 8, 3),
        second=nn.BatchNorm1d(8),
        head=nn.Linear(8, 5),
    )


@structure("channel 6", args=(floats(3, 4, 4, 5, 5),))
def batch_norm_in_three_dimensions() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.norm(self.stem(x)).relu(), 2)
        return self.head(x).mean((2, 3, 4))

    return module(
        forward, stem=nn.Conv3d(4, 6, 3, padding=1), norm=nn.BatchNorm3d(6), head=nn.Conv3d(6, 5, 1)
    )


@structure("channel 2", "channel 6~", args=(IMAGE,))
def group_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(forward, stem=conv(4, 12), norm=nn.GroupNorm(2, 12), head=conv(12, 5))


@structure("channel 6", "channel 7~", args=(IMAGE,))
def instance_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.bare(self.mix(x)))

    return module(
        forward,
        stem=conv(4, 6),
        norm=nn.InstanceNorm2d(6, affine=True),
        mix=conv(6, 7),
        bare=nn.GroupNorm(1, 7, affine=False),
        head=conv(7, 5),
    )


@structure("channel 8~", args=(IMAGE,))
def global_response_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scaled = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return self.head(x + self.gamma * (x * scaled) + self.beta)

    return module(
        forward, stem=conv(4, 8), gamma=weight(1, 1, 1, 8), beta=weight(8), head=nn.Linear(8, 5)
    )


@structure("channel 6~", "channel 9", args=(IMAGE,))
def standardised_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        for part in (self.a, self.b):
            w = part.weight
            mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
            x = F.conv2d(x, (w - mean) / (var + 1e-5).sqrt(), part.bias, padding=1).relu()
        return self.head(x)

    return module(forward, a=conv(4, 6), b=conv(6, 9), head=conv(9, 5))


@structure("channel 9~", "channel 6~", args=(IMAGE,))
def extremes_over_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        gate = torch.cat([a.amax(1, keepdim=True), a.mean(1, keepdim=True)], 1)
        high, low = b.max(1, keepdim=True).values, b.amin(1, keepdim=True)
        return self.head(a * self.mix(gate).sigmoid()) + high - low

    return module(forward, a=conv(4, 9), b=conv(4, 6), mix=conv(2, 1), head=conv(9, 5))


@structure("channel 6~", "channel 9~", args=(IMAGE,))
def weight_norm_by_hook() -> nn.Module:
    import warnings

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many published models
        a, b = (nn.utils.weight_norm(layer) for layer in (conv(4, 6), conv(6, 9)))
    return module(forward, a=a, b=b, head=conv(9, 5))


@structure("channel 6~", "channel 9~", args=(IMAGE,))
def weight_norm_by_parametrization() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())

    a, b = (nn.utils.parametrizations.weight_norm(layer) for layer in (conv(4, 6), conv(6, 9)))
    return module(forward, a=a, b=b, head=conv(9, 5))


@structure("channel 6~", args=(IMAGE,))
def layer_norm_over_maps() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        x = F.local_response_norm(self.b(x), 2)
        return self.head(x)

    return module(
        forward, a=conv(4, 6), norm=nn.LayerNorm([6, 6, 6]), b=conv(6, 7), head=conv(7, 5)
    )


@structure("channel 2~", "channel 4", "channel 4", "residual 3", "residual 4~", args=(IMAGE,))
def group_norm_residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.n(self.a(x)).relu())
        x = x + self.d(self.m(x).relu())
        return self.head(torch.cat([x, self.e(x)], 1))

    return module(
        forward,
        stem=conv(4, 12),
        a=conv(12, 8),
        n=nn.GroupNorm(4, 8),
        b=conv(8, 12),
        m=nn.GroupNorm(3, 12),
        d=conv(12, 12),
        e=conv(12, 4),
        head=conv(16, 5),
    )


@structure("residual 10~", "hidden 9", args=(TOKENS,))
def rms_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(self.first(self.norm(x)).relu())
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale)

    return module(
        forward,
        stem=nn.Linear(8, 10),
        norm=nn.RMSNorm(10),
        first=nn.Linear(10, 9),
        second=nn.Linear(9, 10),
        scale=weight(10),
        head=nn.Linear(10, 5),
    )


@structure("hidden 10~", "hidden 6~", "hidden 9~", args=(TOKENS,))
def statistics_by_hand() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x)
        var, mean = torch.var_mean(a, -1, keepdim=True)
        b = self.b((a - mean) / (var + 1e-5).sqrt())
        b = b - b.logsumexp(-1, keepdim=True)
        c = self.c(b)
        return self.head(c / c.std(-1, keepdim=True).clamp_min(1e-3))

    return module(
        forward, a=nn.Linear(8, 10), b=nn.Linear(10, 6), c=nn.Linear(6, 9), head=nn.Linear(9, 5)
    )


@structure("hidden 10~", "hidden 9~", args=(TOKENS,))
def unit_vectors() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.normalize(self.b(F.normalize(self.a(x), dim=-1)), dim=2)
        return 5 * F.linear(x, F.normalize(self.prototypes, dim=1))

    return module(forward, a=nn.Linear(8, 10), b=nn.Linear(10, 9), prototypes=weight(5, 9))


@structure("hidden 9~", "hidden 10~", args=(TOKENS,))
def softmax_over_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).softmax(-1)).log_softmax(2).exp())

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(9, 10), head=nn.Linear(10, 5))


@structure("hidden 9", args=(TOKENS,))
def spectral_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu())

    return module(
        forward, a=nn.utils.parametrizations.spectral_norm(nn.Linear(8, 9)), head=nn.Linear(9, 5)
    )


@structure("hidden 10~", "hidden 6~", args=(TOKENS,))
def norm_over_a_concat() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x), x[..., :2]], -1)
        return self.head(self.norm(y)) + self.tail(y.softmax(-1))

    return module(
        forward,
        a=nn.Linear(8, 6),
        b=nn.Linear(8, 10),
        norm=nn.LayerNorm(18),
        head=nn.Linear(18, 5),
        tail=nn.Linear(18, 5),
    )


@structure("hidden 3~", "hidden 4~", args=(TOKENS,))
def moments_over_products() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x).view(-1, 7, 3, 4)
        y = y - y.mean((2, 3), keepdim=True)
        y = y / (y.square().mean((-2, -1), keepdim=True) + 1e-5).sqrt()
        z = y.flatten(2)
        return (
            self.head(F.layer_norm(z, (12,))) + z.sum(-1, keepdim=True) + z.amax(-1, keepdim=True)
        )

    return module(forward, up=nn.Linear(8, 12), head=nn.Linear(12, 5))
