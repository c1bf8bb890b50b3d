"""Nets that move channels by number: shuffles that no product describes, permutations, picks."""

from __future__ import annotations

from typing import Any

import torch
from nets import IMAGE, TOKENS, conv, module, structure
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
