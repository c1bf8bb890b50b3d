"""Nets that move channels by number: shuffles that no product describes, permutations, picks."""

from __future__ import annotations

from typing import Any

import torch
from nets import IMAGE, TOKENS, conv, floats, module, structure
from torch import Tensor, nn


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Unit(nn.Module):
    """ShuffleNetV2's: half of the channels pass, the other half are worked on."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(half, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            conv(half, half, groups=half),
            conv(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return shuffle(torch.cat((left, self.branch(right)), 1), 2)


@structure("channel 5", *["channel 7"] * 5, args=(IMAGE,))
def shufflenet_of_odd_halves() -> nn.Module:
    return nn.Sequential(conv(4, 14, 1), Unit(7), Unit(7), conv(14, 5, 1))


@structure("channel 4", "channel 5", *["channel 6"] * 6, args=(IMAGE,))
def shufflenet_of_even_halves() -> nn.Module:
    """Three units: by then a half of the halves is odd."""
    return nn.Sequential(conv(4, 12, 1), Unit(6), Unit(6), Unit(6), conv(12, 5, 1))


@structure("channel 24", args=(IMAGE,))
def shuffles_without_a_common_refinement() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.depthwise(shuffle(self.stem(x), 6)).relu()
        return self.head(shuffle(x, 6))

    return module(
        forward, stem=conv(4, 24, 1), depthwise=conv(24, 24, groups=24), head=conv(24, 5, 1)
    )


@structure("group 2", "channel 6", "channel 9", "channel 12", args=(IMAGE,))
def one_shuffle_is_a_product_and_one_is_not() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = shuffle(self.grouped(self.spread(x)).relu(), 2)
        x = shuffle(self.mix(x), 2)
        return self.head(x[:, :7]) + self.tail(x[:, 7:])

    return module(
        forward,
        spread=conv(4, 12, 1),
        grouped=conv(12, 18, groups=2),
        mix=conv(18, 14, 1),
        head=conv(7, 5, 1),
        tail=conv(7, 5, 1),
    )


@structure("channel 12", "channel 9", args=(IMAGE,))
def permuted_by_a_buffer_and_by_a_literal() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))[:, self.order].relu()
        x = self.b(x).index_select(1, torch.tensor([1, 4, 2, 8, 0, 3, 7, 5, 6]))
        return self.head(x.relu())

    order = torch.tensor([5, 0, 7, 2, 11, 1, 9, 3, 10, 4, 8, 6])
    return module(
        forward,
        a=conv(4, 12, 1),
        norm=nn.BatchNorm2d(12),
        b=conv(12, 9),
        head=conv(9, 5, 1),
        order=order,
    )


@structure("hidden 11", "hidden 9", args=(TOKENS,))
def some_features_picked() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x[..., [9, 1, 4, 2, -1]]).relu()) + self.whole(x)

    return module(
        forward,
        a=nn.Linear(8, 12),
        b=nn.Linear(5, 9),
        head=nn.Linear(9, 5),
        whole=nn.Linear(12, 5),
    )


def overlapping(x: Tensor, half: int) -> Tensor:
    """Windows of two halves, each sharing one with the next, as Longformer reads its chunks."""
    n, length, width = x.shape
    a, b, c = x.stride()
    return x.as_strided((n, length // half - 1, 2 * half, width), (a, half * b, b, c))


def windowed(forward: Any) -> nn.Module:
    return module(
        forward,
        q=nn.Linear(8, 24),
        k=nn.Linear(8, 24),
        v=nn.Linear(8, 24),
        out=nn.Linear(24, 5),
    )


@structure("head 4", "head-dim 6", "head-dim 6", args=(floats(3, 8, 8),))
def windows_by_strides() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            y = y.view(n, t, 4, 6).transpose(0, 1).contiguous().transpose(0, 1)
            return overlapping(y.transpose(1, 2).reshape(n * 4, t, 6), 2)

        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        shares = torch.einsum("bcxd,bcyd->bcxy", q, k).softmax(-1)
        mixed = torch.einsum("bcxy,bcyd->bcxd", shares, v)
        return self.out(mixed[:, :, :2].reshape(n, 4, -1, 6).transpose(1, 2).flatten(2))

    return windowed(forward)


@structure("hidden 6", args=(floats(3, 8, 8),))
def strides_into_what_is_written_later() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        windows = overlapping(y, 2)
        y.mul_(2.0)
        return self.head(self.b(windows.sum(2)).relu())

    return module(forward, a=nn.Linear(8, 7), b=nn.Linear(7, 6), head=nn.Linear(6, 5))


@structure("hidden 7", "hidden 8", args=(floats(3, 8, 8),))
def strides_across_the_width() -> nn.Module:
    """A diagonal: entries selected from both axes taken as one; the first of them has to stay."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        diagonal = y.as_strided((y.shape[0], 8), (y.stride(0), y.stride(1) + y.stride(2)))
        return self.head(self.b(diagonal).relu())

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(8, 7), head=nn.Linear(7, 5))
