"""Nets of convolutions, pools and norms over channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import IMAGE, conv, floats, module, structure, weight
from torch import Tensor, nn


@structure("residual 8", "channel 6", args=(IMAGE,))
def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = x + self.second(self.first(x).relu())
        return self.head(x.mean((2, 3)))

    return module(
        forward,
        stem=conv(4, 8),
        bn=nn.BatchNorm2d(8),
        first=conv(8, 6),
        second=conv(6, 8),
        head=nn.Linear(8, 5),
    )


@structure("channel 6", "channel 10", args=(IMAGE,))
def concat_of_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x).relu()], 1))

    return module(forward, a=conv(4, 6), b=conv(4, 10), head=conv(16, 5))


@structure("channel 6", "channel 9", args=(IMAGE,))
def concat_and_split_in_space() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 2)
        up, down = self.mix(x).split([4, 8], dim=2)
        return self.head(up).mean((2, 3)) + self.head(down).mean((2, 3))

    return module(forward, a=conv(4, 6), b=conv(4, 6), mix=conv(6, 9), head=conv(9, 5))


@structure("channel 5", "channel 6", "channel 7", args=(IMAGE,))
def dense_block() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(torch.cat([x, a], 1).relu())
        c = self.c(self.norm(torch.cat([x, a, b], 1)).relu())
        return self.head(torch.cat([a, b, c], 1))

    return module(
        forward,
        a=conv(4, 5),
        b=conv(9, 6),
        norm=nn.BatchNorm2d(15),
        c=conv(15, 7),
        head=conv(18, 3),
    )


@structure("group 2", "channel 6", "channel 9", args=(IMAGE,))
def channel_shuffle() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.spread(x)
        x = self.grouped(x).relu()
        n, _, h, w = x.shape
        x = x.view(n, 2, 9, h, w).transpose(1, 2).reshape(n, 18, h, w)
        return self.head(x)

    return module(
        forward, spread=conv(4, 12, 1), grouped=conv(12, 18, groups=2), head=conv(18, 5, 1)
    )


@structure("channel 6", "channel 7", args=(IMAGE,))
def pixel_shuffle() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(x), 2)
        return self.head(F.pixel_unshuffle(self.mix(x).relu(), 2))

    return module(forward, up=conv(4, 24), mix=conv(6, 7), head=conv(28, 5, 1))


@structure("channel 3", "channel 5", args=(IMAGE,))
def depthwise_with_multiplier() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.depthwise(self.stem(x))).relu())

    return module(
        forward,
        stem=conv(4, 5),
        depthwise=conv(5, 15, groups=5),
        norm=nn.BatchNorm2d(15),
        head=conv(15, 3),
    )


@structure("group 3", "channel 4", "channel 5", args=(IMAGE,))
def grouped_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x).relu()).relu())

    return module(forward, stem=conv(4, 12), grouped=conv(12, 15, groups=3), head=conv(15, 2))


@structure("channel 6", "group 3", "channel 2", "channel 4", args=(IMAGE,))
def transposed_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.up(self.stem(x).relu())
        return self.head(self.grouped(x).relu())

    return module(
        forward,
        stem=conv(4, 6),
        up=nn.ConvTranspose2d(6, 6, 2, stride=2),
        grouped=nn.ConvTranspose2d(6, 12, 3, groups=3, bias=False),
        head=conv(12, 5),
    )


@structure("channel 6", "hidden 10", args=(IMAGE,))
def flatten_into_linear() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x).relu(), 2)
        return self.head(self.hidden(x.view(x.size(0), -1)).relu())

    return module(forward, stem=conv(4, 6), hidden=nn.Linear(54, 10), head=nn.Linear(10, 5))


@structure("channel 8", "channel 3", args=(IMAGE,))
def squeeze_and_excite() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.head(x * gate)

    return module(forward, stem=conv(4, 8), down=conv(8, 3, 1), up=conv(3, 8, 1), head=conv(8, 5))


@structure("residual 6", args=(IMAGE,))
def zero_padded_shortcut() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head((short + self.block(x)).relu())

    return module(
        forward, stem=conv(4, 6), block=nn.Conv2d(6, 10, 3, stride=2, padding=1), head=conv(10, 3)
    )


@structure("channel 6", "channel 7", args=(IMAGE,))
def convolution_padded_by_a_string() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.same(x).relu()
        return self.head(self.reflect(x).relu())

    return module(
        forward,
        same=nn.Conv2d(4, 6, 3, padding="same"),
        reflect=nn.Conv2d(6, 7, 3, padding=1, padding_mode="reflect"),
        head=nn.Conv2d(7, 5, 3, padding="valid"),
    )


@structure("channel 6", "channel 7", args=(IMAGE,))
def resized_and_pooled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        small = F.avg_pool2d(self.a(x), 2)
        big = F.interpolate(self.b(small), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([big, F.interpolate(small, size=(6, 6))], 1))

    return module(forward, a=conv(4, 6), b=conv(6, 7), head=conv(13, 5))


@structure("channel 6", "channel 9", args=(IMAGE,))
def frozen_parameters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())

    return module(forward, a=conv(4, 6), b=conv(6, 9), head=conv(9, 5)).requires_grad_(False)


@structure("residual 8", "channel 6", args=(IMAGE,))
def module_called_twice() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.second(self.first(x).relu())
        return self.head(x)

    return module(forward, stem=conv(4, 8), first=conv(8, 6), second=conv(6, 8), head=conv(8, 5))


@structure("residual 6", "residual 7", "channel 8", args=(IMAGE,))
def in_place_operations() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        x.add_(self.side(x)).mul_(0.5)
        canvas = torch.zeros(x.shape[0], 13, 6, 6)
        canvas[:, :6] = x
        canvas[:, 6:] += self.b(x)
        y = self.mix(canvas)
        y += 1.0
        y[:, :, 0] = 0.0
        return self.head(y.sigmoid_())

    return module(
        forward, stem=conv(4, 6), side=conv(6, 6), b=conv(6, 7), mix=conv(13, 8), head=conv(8, 5)
    )


@structure("channel 6", "hidden 7", args=(IMAGE,))
def squeeze_without_dims() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.stem(x).relu(), 1).squeeze()
        y = self.mix(x).squeeze()
        return self.head(y.unsqueeze(0).squeeze(0).relu())

    return module(forward, stem=conv(4, 6), mix=nn.Linear(6, 7), head=nn.Linear(7, 5))


@structure("channel 6", "channel 8", args=(IMAGE,))
def prelu_with_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.slopes(self.stem(x))).relu() * self.scale)

    return module(
        forward,
        stem=conv(4, 6),
        slopes=nn.PReLU(6),
        b=nn.Sequential(conv(6, 8), nn.PReLU()),
        scale=weight(8, 1, 1),
        head=conv(8, 5),
    )


@structure("channel 9", args=(IMAGE,))
def channels_convolved_as_a_sequence() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.along(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return self.head(self.free(x * gate[:, :, None, None]).relu())

    return module(
        forward,
        stem=conv(4, 6),
        along=nn.Conv1d(1, 1, 3, padding=1),
        free=conv(6, 9),
        head=conv(9, 5),
    )


@structure("channel 6", "hidden 10~", args=(IMAGE,))
def patch_merging() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        parts = [x[:, i::2, j::2, :] for j in range(2) for i in range(2)]
        x = self.norm(self.reduce(torch.cat(parts, -1)))
        return self.head(x)

    return module(
        forward,
        stem=conv(4, 6),
        reduce=nn.Linear(24, 10, bias=False),
        norm=nn.LayerNorm(10),
        head=nn.Linear(10, 5),
    )


@structure("channel 5", "hidden 6", args=(IMAGE,))
def depth_to_space_by_views() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, 9, 4 * c)
        y = self.mix(y)
        y = y.view(b, 3, 3, 2, 2, 6).permute(0, 5, 1, 3, 2, 4).reshape(b, 6, 6, 6)
        return self.head(y)

    return module(forward, stem=conv(4, 5), mix=nn.Linear(20, 24), head=conv(6, 3))


@structure("channel 10", "channel 3", "residual 3", "residual 9", args=(IMAGE,))
def partial_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = torch.split(x, [3, 9], dim=1)
        x = x + self.down(self.up(torch.cat((self.part(a), b), 1)).relu())
        return self.head(x)

    return module(
        forward,
        stem=conv(4, 12),
        part=conv(3, 3),
        up=conv(12, 10, 1),
        down=conv(10, 12, 1),
        head=conv(12, 5),
    )


@structure("channel 4", "channel 4", "residual 4", args=(IMAGE,))
def res2_block() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), 4, 1)
        s = parts[0]
        out = [s]
        for p, c in zip(parts[1:], (self.a, self.b), strict=True):
            s = c(s + p).relu()
            out.append(s)
        return self.head(torch.cat(out, 1))

    return module(forward, stem=conv(4, 12), a=conv(4, 4), b=conv(4, 4), head=conv(12, 5))


@structure("channel 2", "channel 5", "channel 6", args=(IMAGE,))
def involution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        k = self.span(self.reduce(x).relu()).view(b, 2, 9, h, w).unsqueeze(2)
        u = F.unfold(x, 3, padding=1).view(b, 2, 6, 9, h, w)
        return self.head((k * u).sum(3).view(b, c, h, w))

    return module(
        forward, stem=conv(4, 12), reduce=conv(12, 5, 1), span=conv(5, 18, 1), head=conv(12, 3)
    )


@structure("group 2", "residual 4", args=(IMAGE,))
def highway_of_groups() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        t = self.gate(x).sigmoid()
        x = t * self.body(x).relu() + (1 - t) * x
        x = torch.channel_shuffle(x, 2) if hasattr(torch, "channel_shuffle") else x
        return self.head(torch.lerp(x, x.tanh(), 0.3))

    return module(
        forward, stem=conv(4, 8), gate=conv(8, 8, groups=2), body=conv(8, 8), head=conv(8, 5)
    )


@structure("channel 6", "channel 7", args=(floats(4, 9),))
def unbatched_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).mean(-1))

    return module(forward, a=nn.Conv1d(4, 6, 3), b=nn.Conv1d(6, 7, 3), head=nn.Linear(7, 5))


@structure("expert 13~", "residual 6", args=(IMAGE,))
def codebook() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.stem(x).permute(0, 2, 3, 1)
        flat = z.reshape(-1, 6)
        d = (
            flat.pow(2).sum(1, keepdim=True)
            - 2 * flat @ self.codes.weight.t()
            + self.codes.weight.pow(2).sum(1)
        )
        q = self.codes(d.argmin(1)).view(z.shape)
        q = z + (q - z).detach()
        return self.head(q.permute(0, 3, 1, 2))

    return module(forward, stem=conv(4, 6), codes=nn.Embedding(13, 6), head=conv(6, 5))


@structure("channel 6", "hidden 3", args=(IMAGE,))
def channels_as_batch() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        y = self.blur(x.view(b * c, 1, h, w)).view(b, c, h, w) * self.gamma.view(
            1, -1, 1, 1
        ) + self.beta.reshape(1, 6, 1, 1)
        z = self.line(x.reshape(b * c, h, w)).reshape(b, c, h * 3).sum(-1)
        return self.head(y).mean((2, 3)) + self.tail(z)

    return module(
        forward,
        stem=conv(4, 6),
        blur=conv(1, 1),
        gamma=weight(6),
        beta=weight(6),
        line=nn.Linear(6, 3),
        head=conv(6, 5),
        tail=nn.Linear(6, 5),
    )


@structure("head-dim 6", args=(IMAGE,))
def a_width_times_itself() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.head((x @ x.transpose(1, 2)).flatten(1) / 36)

    return module(forward, stem=conv(4, 6), head=nn.Linear(36, 5))


@structure("channel 6", "channel 9", "channel 7", "channel 5", args=(floats(3, 4, 9, 9),))
def skip_with_crop() -> nn.Module:
    """A U-Net without padding: the skip is cropped to what comes up, then joined to it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        high = self.down(x).relu()
        low = self.deep(F.max_pool2d(high, 2)).relu()
        up = self.up(low)
        crop = (high.shape[2] - up.shape[2]) // 2
        skip = high[:, :, crop : crop + up.shape[2], crop : crop + up.shape[3]]
        return self.head(self.mix(torch.cat([skip, up], 1)).relu())

    return module(
        forward,
        down=nn.Conv2d(4, 6, 2),
        deep=nn.Conv2d(6, 9, 3),
        up=nn.ConvTranspose2d(9, 7, 2, stride=2),
        mix=conv(13, 5),
        head=conv(5, 3),
    )


@structure("channel 6", "channel 7", "channel 8", "channel 9", "channel 5", args=(IMAGE,))
def atrous_pyramid() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        pooled = self.pooled(F.adaptive_avg_pool2d(x, 1)).relu()
        pooled = F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.mix(torch.cat([self.a(x), self.b(x), pooled], 1)).relu())

    return module(
        forward,
        stem=conv(4, 6),
        a=conv(6, 7, 1),
        b=nn.Conv2d(6, 8, 3, padding=2, dilation=2),
        pooled=conv(6, 9, 1),
        mix=conv(24, 5),
        head=conv(5, 3),
    )


@structure("hidden 5", "residual 8", "channel 6", args=(IMAGE, floats(3, 7)))
def feature_modulation() -> nn.Module:
    """FiLM: a vector scales and shifts the channels of an image."""

    def forward(self: Any, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(self.embed(c).relu()).view(-1, 2, 8).unbind(1)
        x = self.norm(self.stem(x)) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return self.head(self.mix(x.relu()).relu())

    return module(
        forward,
        stem=conv(4, 8),
        norm=nn.BatchNorm2d(8, affine=False),
        embed=nn.Linear(7, 5),
        film=nn.Linear(5, 16),
        mix=conv(8, 6),
        head=conv(6, 3),
    )
