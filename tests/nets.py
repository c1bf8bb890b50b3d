"""Small nets, one per structure, with the dimensions that must be found prunable in each.

A dimension is written `kind size`, followed by `~` when it is norm-coupled. Sizes differ from each
other where they may, so that no test passes because two numbers happen to be equal.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from prunec.compiler import capture
from prunec.compiler.inference.graph import Graph
from torch import Tensor, nn

Build = Callable[[], nn.Module]
Forward = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Structure:
    """One net of the table. `finds`: the prunable dimensions, sorted."""

    name: str
    build: Build
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    finds: tuple[str, ...]

    def graph(self) -> Graph:
        """The captured net; captured once."""
        return captured(self.name)


STRUCTURES: dict[str, Structure] = {}


def structure(*finds: str, args: tuple[Any, ...] = (), **kwargs: Any) -> Callable[[Build], Build]:
    """Add a net to the table, under its function's name; `args`, `kwargs`: its example inputs."""

    def register(build: Build) -> Build:
        STRUCTURES[build.__name__] = Structure(
            build.__name__, build, args, kwargs, tuple(sorted(finds))
        )
        return build

    return register


@functools.cache
def captured(name: str) -> Graph:
    entry = STRUCTURES[name]
    torch.manual_seed(0)
    model = entry.build().eval()
    lively(model)
    return capture(model, entry.args, kwargs=entry.kwargs)


def lively(model: nn.Module) -> None:
    """Biases, norm parameters and running statistics off their initial 0 and 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2:
                p.add_(0.3 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2)


def found(graph: Graph) -> tuple[str, ...]:
    """The prunable dimensions of a graph, as the table writes them."""
    return tuple(
        sorted(f"{d.kind} {d.size}{'' if d.exact else '~'}" for d in graph.prunable.values())
    )


def module(forward: Forward, **parts: Any) -> nn.Module:
    """A module of these parts: sub-modules, parameters, buffers (plain tensors) and values."""
    made = type(forward.__qualname__.split(".")[0], (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(sum(shape)))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(floats(*shape) * shape[-1] ** -0.5)


IMAGE = floats(3, 4, 6, 6)
TOKENS = floats(3, 7, 8)
IDS = ids(3, 7, below=11)


# convolutional nets


def conv(a: int, b: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


@structure("residual 8", "channel 6", args=(IMAGE,))
def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = x + self.second(self.first(x).relu())
        return self.head(x.mean((2, 3)))

    return module(
        forward, stem=conv(4, 8), bn=nn.BatchNorm2d(8), first=conv(8, 6), second=conv(6, 8),
        head=nn.Linear(8, 5),
    )


@structure("channel 6", "channel 10", args=(IMAGE,))
def concat_of_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x).relu()], 1))

    return module(forward, a=conv(4, 6), b=conv(4, 10), head=conv(16, 5))


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
        forward, embed=nn.Linear(8, 12), first=weight(1, 1, 12), positions=weight(1, 8, 12),
        head=nn.Linear(12, 5),
    )


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
        forward, a=conv(4, 5), b=conv(9, 6), norm=nn.BatchNorm2d(15), c=conv(15, 7),
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
        forward, stem=conv(4, 5), depthwise=conv(5, 15, groups=5), norm=nn.BatchNorm2d(15),
        head=conv(15, 3),
    )


@structure("group 3", "channel 4", "channel 5", args=(IMAGE,))
def grouped_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x).relu()).relu())

    return module(
        forward, stem=conv(4, 12), grouped=conv(12, 15, groups=3), head=conv(15, 2)
    )


@structure("channel 6", "group 3", "channel 2", "channel 4", args=(IMAGE,))
def transposed_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.up(self.stem(x).relu())
        return self.head(self.grouped(x).relu())

    return module(
        forward, stem=conv(4, 6), up=nn.ConvTranspose2d(6, 6, 2, stride=2),
        grouped=nn.ConvTranspose2d(6, 12, 3, groups=3, bias=False), head=conv(12, 5),
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

    return module(
        forward, stem=conv(4, 8), down=conv(8, 3, 1), up=conv(3, 8, 1), head=conv(8, 5)
    )


@structure("residual 6", args=(IMAGE,))
def zero_padded_shortcut() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head((short + self.block(x)).relu())

    return module(
        forward, stem=conv(4, 6), block=nn.Conv2d(6, 10, 3, stride=2, padding=1),
        head=conv(10, 3),
    )


@structure("channel 6", "channel 7", args=(IMAGE,))
def convolution_padded_by_a_string() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.same(x).relu()
        return self.head(self.reflect(x).relu())

    return module(
        forward, same=nn.Conv2d(4, 6, 3, padding="same"),
        reflect=nn.Conv2d(6, 7, 3, padding=1, padding_mode="reflect"),
        head=nn.Conv2d(7, 5, 3, padding="valid"),
    )


@structure("channel 6", "channel 8", args=(floats(3, 4, 9),))
def batch_norm_in_one_dimension() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.second(self.mix(x).mean(-1)).tanh())

    return module(
        forward, stem=nn.Conv1d(4, 6, 3), norm=nn.BatchNorm1d(6), mix=nn.Conv1d(6, 8, 3),
        second=nn.BatchNorm1d(8), head=nn.Linear(8, 5),
    )


@structure("channel 6", args=(floats(3, 4, 4, 5, 5),))
def batch_norm_in_three_dimensions() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.norm(self.stem(x)).relu(), 2)
        return self.head(x).mean((2, 3, 4))

    return module(
        forward, stem=nn.Conv3d(4, 6, 3, padding=1), norm=nn.BatchNorm3d(6),
        head=nn.Conv3d(6, 5, 1),
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
        forward, stem=conv(4, 6), norm=nn.InstanceNorm2d(6, affine=True), mix=conv(6, 7),
        bare=nn.GroupNorm(1, 7, affine=False), head=conv(7, 5),
    )


@structure("residual 8~", args=(IMAGE,))
def global_response_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scaled = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return self.head(x + self.gamma * (x * scaled) + self.beta)

    return module(
        forward, stem=conv(4, 8), gamma=weight(1, 1, 1, 8), beta=weight(8), head=nn.Linear(8, 5)
    )


@structure("channel 6", "channel 7", args=(IMAGE,))
def resized_and_pooled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        small = F.avg_pool2d(self.a(x), 2)
        big = F.interpolate(self.b(small), scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([big, F.interpolate(small, size=(6, 6))], 1))

    return module(forward, a=conv(4, 6), b=conv(6, 7), head=conv(13, 5))


@structure("channel 6", args=(IMAGE,))
def patches_by_unfold() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        columns = F.unfold(self.stem(x), 2, stride=2)
        return self.head(columns.transpose(1, 2))

    return module(forward, stem=conv(4, 6), head=nn.Linear(24, 5))


@structure("channel 6~", "channel 9", args=(IMAGE,))
def standardised_weights() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        for part in (self.a, self.b):
            w = part.weight
            mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
            x = F.conv2d(x, (w - mean) / (var + 1e-5).sqrt(), part.bias, padding=1).relu()
        return self.head(x)

    return module(forward, a=conv(4, 6), b=conv(6, 9), head=conv(9, 5))


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

    return module(
        forward, stem=conv(4, 8), first=conv(8, 6), second=conv(6, 8), head=conv(8, 5)
    )


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
        forward, stem=conv(4, 6), slopes=nn.PReLU(6), b=nn.Sequential(conv(6, 8), nn.PReLU()),
        scale=weight(8, 1, 1), head=conv(8, 5),
    )


@structure("channel 9", args=(IMAGE,))
def channels_convolved_as_a_sequence() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.along(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return self.head(self.free(x * gate[:, :, None, None]).relu())

    return module(
        forward, stem=conv(4, 6), along=nn.Conv1d(1, 1, 3, padding=1), free=conv(6, 9),
        head=conv(9, 5),
    )


@structure("head 2", "head-dim 5", "head-dim 6", args=(IMAGE,))
def attention_over_pixels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q = self.q(x).reshape(n, 2, 5, h * w)
        k = self.k(x).reshape(n, 2, 5, h * w)
        v = self.v(x).reshape(n, 2, 6, h * w)
        scores = torch.einsum("bhdl,bhds->bhls", q, k).softmax(-1)
        out = torch.einsum("bhls,bhds->bhdl", scores, v).reshape(n, 12, h, w)
        return self.head(out)

    return module(
        forward, q=conv(4, 10, 1), k=conv(4, 10, 1), v=conv(4, 12, 1), head=conv(12, 5, 1)
    )


# token nets


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
        forward, wide=nn.Linear(8, 16), head=nn.Linear(8, 5), c=nn.Linear(5, 5),
        d=nn.Linear(11, 5),
    )


@structure("residual 7", args=(TOKENS,))
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


@structure("head 4", "head-dim 6", args=(TOKENS,))
def literal_view_sizes() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k = (part(x).view(3, 7, 4, 6).transpose(1, 2) for part in (self.q, self.k))
        return self.head((q @ k.mT).softmax(-1).matmul(k).transpose(1, 2).reshape(3, 7, 24))

    return module(forward, q=nn.Linear(8, 24), k=nn.Linear(8, 24), head=nn.Linear(24, 5))


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


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


@structure("head 2", "head-dim 6", args=(TOKENS,))
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
        forward, stem=nn.Linear(8, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 5),
    )


@structure(
    "hidden 8", "hidden 8", "head 2", "head-dim 4", "head-dim 4",
    args=(TOKENS, floats(3, 9, 6)),
)
def multihead_cross_attention() -> nn.Module:
    def forward(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        y, _ = self.attention(
            self.stem(x).transpose(0, 1), *2 * (memory.transpose(0, 1),), need_weights=False
        )
        return self.head(y.transpose(0, 1).relu())

    return module(
        forward, stem=nn.Linear(8, 8), attention=nn.MultiheadAttention(8, 2, kdim=6, vdim=6),
        head=nn.Linear(8, 5),
    )


@structure("residual 8~", "head 2", "head-dim 4", "hidden 10", args=(TOKENS,))
def transformer_encoder_layer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)))

    return module(
        forward, stem=nn.Linear(8, 8), head=nn.Linear(8, 5),
        layer=nn.TransformerEncoderLayer(8, 2, 10, batch_first=True),
    )


@structure("residual 8~", "hidden 10", *2 * ("head 2", "head-dim 4"), args=(TOKENS, floats(3, 9, 8)),
)
def transformer_decoder_layer() -> nn.Module:
    def forward(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x), self.stem(memory)))

    return module(
        forward, stem=nn.Linear(8, 8), head=nn.Linear(8, 5),
        layer=nn.TransformerDecoderLayer(8, 2, 10, batch_first=True, norm_first=True),
    )


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions, halves apart, as Llama has them."""
    angles = torch.arange(x.shape[-2])[:, None] * table
    angles = torch.cat([angles, angles], -1)
    low, high = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-high, low], -1) * angles.sin()


@structure("kv-head 2", "query-group 3", "head-dim 4", "head-dim 8", args=(TOKENS,))
def grouped_queries_repeated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part(x).view(b, n, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        q, k = rotated(q, self.inv_freq), rotated(k, self.inv_freq)
        k, v = (
            t[:, :, None].expand(b, 2, 3, n, 8).reshape(b, 6, n, 8) for t in (k, v)
        )
        scores = (q @ k.transpose(2, 3)) * 8**-0.5
        scores = scores + torch.full((n, n), -1e9).triu(1)
        out = scores.softmax(-1, dtype=torch.float32) @ v
        return self.head(out.transpose(1, 2).contiguous().reshape(b, n, -1))

    return module(
        forward, q=nn.Linear(8, 48, bias=False), k=nn.Linear(8, 16), v=nn.Linear(8, 16),
        head=nn.Linear(48, 5), inv_freq=10000 ** -(torch.arange(4) / 4),
    )


@structure("kv-head 2", "query-group 3", "head-dim 4", "head-dim 8", args=(TOKENS,))
def grouped_queries_in_the_kernel() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part(x).view(b, n, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        q, k = rotated(q, self.inv_freq), rotated(k, self.inv_freq)
        out = attend(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(out.transpose(1, 2).reshape(b, n, 48))

    return module(
        forward, q=nn.Linear(8, 48), k=nn.Linear(8, 16), v=nn.Linear(8, 16),
        head=nn.Linear(48, 5), inv_freq=10000 ** -(torch.arange(4) / 4),
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
        forward, q=nn.Linear(8, 48), k=nn.Linear(8, 16), v=nn.Linear(8, 16),
        head=nn.Linear(48, 5),
    )


@structure("hidden 3", "hidden 6", args=(TOKENS,))
def features_repeated_and_tiled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a(x).repeat(1, 1, 3)
        return self.head(a * self.b(x))

    return module(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 18), head=nn.Linear(18, 5))


@structure("head 2", "head-dim 3", "head-dim 6", args=(TOKENS,))
def rotary_interleaved() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part(x).view(b, n, 2, 6).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        angles = torch.arange(n)[:, None] * self.inv_freq
        cos, sin = (t.repeat_interleave(2, -1) for t in (angles.cos(), angles.sin()))
        q, k = (
            t * cos + torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2) * sin
            for t in (q, k)
        )
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 12))

    return module(
        forward, q=nn.Linear(8, 12), k=nn.Linear(8, 12), v=nn.Linear(8, 12),
        head=nn.Linear(12, 5), inv_freq=10000 ** -(torch.arange(3) / 3),
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
        forward, q=nn.Linear(8, 12), k=nn.Linear(8, 12), v=nn.Linear(8, 12),
        head=nn.Linear(12, 5), inv_freq=10000 ** -(torch.arange(3) / 3),
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
            bias.expand(b, 4, n, n).reshape(b * 4, n, n), q.reshape(b * 4, n, 5),
            k.reshape(b * 4, n, 5).transpose(1, 2), alpha=5**-0.5,
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
        forward, q=nn.Linear(8, 12), k=nn.Linear(8, 12), v=nn.Linear(8, 10),
        head=nn.Linear(10, 5),
    )


@structure("head-dim 6~", "head-dim 9", args=(TOKENS,))
def sigmoids_contracted_with_each_other() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        scores = self.a(x).sigmoid() @ self.b(x).sigmoid().transpose(1, 2)
        return self.head(scores @ (self.gate(x).sigmoid() * self.up(x)))

    return module(
        forward, a=nn.Linear(8, 6), b=nn.Linear(8, 6), gate=nn.Linear(8, 9), up=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
    )


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


@structure("channel 6", "hidden 10~", args=(IMAGE,))
def patch_merging() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        parts = [x[:, i::2, j::2, :] for j in range(2) for i in range(2)]
        x = self.norm(self.reduce(torch.cat(parts, -1)))
        return self.head(x)

    return module(
        forward, stem=conv(4, 6), reduce=nn.Linear(24, 10, bias=False), norm=nn.LayerNorm(10),
        head=nn.Linear(10, 5),
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
        forward, stem=conv(4, 8), norm=nn.LayerNorm(8), qkv=nn.Linear(8, 18),
        out=nn.Linear(6, 8), head=nn.Linear(8, 5),
    )


@structure("residual 12~", "hidden 10", "hidden 9", args=(TOKENS,))
def token_mixer() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.up(self.down(self.a(x).transpose(1, 2)).relu()).transpose(1, 2)
        x = x + self.second(self.first(self.b(x)).relu())
        return self.head(x)

    return module(
        forward, stem=nn.Linear(8, 12), a=nn.LayerNorm(12), b=nn.LayerNorm(12, bias=False),
        down=nn.Linear(7, 9), up=nn.Linear(9, 7), first=nn.Linear(12, 10),
        second=nn.Linear(10, 12), head=nn.Linear(12, 5),
    )


@structure("residual 10~", "hidden 9", args=(TOKENS,))
def rms_norm() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(self.first(self.norm(x)).relu())
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale)

    return module(
        forward, stem=nn.Linear(8, 10), norm=nn.RMSNorm(10), first=nn.Linear(10, 9),
        second=nn.Linear(9, 10), scale=weight(10), head=nn.Linear(10, 5),
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


@structure("hidden 9", args=(TOKENS,))
def cosine_similarity() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.a(x)[:, :, None], self.b(x)[:, None], dim=-1)

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(8, 9))


@structure("hidden 9~", "hidden 10~", args=(TOKENS,))
def softmax_over_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).softmax(-1)).log_softmax(2).exp())

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(9, 10), head=nn.Linear(10, 5))


@structure("channel 9~", "channel 6~", args=(IMAGE,))
def extremes_over_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        gate = torch.cat([a.amax(1, keepdim=True), a.mean(1, keepdim=True)], 1)
        high, low = b.max(1, keepdim=True).values, b.amin(1, keepdim=True)
        return self.head(a * self.mix(gate).sigmoid()) + high - low

    return module(
        forward, a=conv(4, 9), b=conv(4, 6), mix=conv(2, 1), head=conv(9, 5)
    )


@structure("hidden 12", args=(IDS,))
def tied_embeddings() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return self.decode(self.mix(self.embed(ids)).relu())

    made = module(
        forward, embed=nn.Embedding(11, 12), mix=nn.Linear(12, 12), decode=nn.Linear(12, 11)
    )
    made.decode.weight = made.embed.weight
    return made


@structure("residual 9", args=(IDS,))
def embedding_with_padding() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        keep = (ids != 0).unsqueeze(-1)
        return self.head((x * keep).sum(1) / keep.sum(1).clamp_min(1))

    return module(
        forward, embed=nn.Embedding(11, 9, padding_idx=0), places=nn.Embedding(20, 9),
        head=nn.Linear(9, 5),
    )


@structure("residual 12~", "head 3", "head-dim 4", "head-dim 4", "hidden 10", args=(TOKENS,))
def gpt2_linear() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.attention(self.a(x)).split(12, dim=2)
        q, k, v = (t.view(b, n, -1, 4).transpose(1, 2) for t in (q, k, v))
        y = attend(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1).contiguous()
        x = x + self.project(y)
        x = x + self.down(F.gelu(self.up(self.b(x)), approximate="tanh"))
        return self.head(x)

    return module(
        forward, stem=nn.Linear(8, 12), a=nn.LayerNorm(12), attention=Conv1D(36, 12),
        project=Conv1D(12, 12), b=nn.LayerNorm(12), up=Conv1D(10, 12), down=Conv1D(12, 10),
        head=nn.Linear(12, 5),
    )


@structure("hidden 6", "hidden 7", args=(TOKENS,))
def lstm_in_two_directions() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, (last, _) = self.lstm(self.stem(x))
        return self.head(x) + self.tail(last[-1])[:, None]

    return module(
        forward, stem=nn.Linear(8, 7), head=nn.Linear(12, 5), tail=nn.Linear(6, 5),
        lstm=nn.LSTM(7, 6, 2, bidirectional=True, batch_first=True),
    )


@structure("hidden 6", "hidden 9", args=(TOKENS,))
def gru_and_rnn() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, _ = self.gru(x.transpose(0, 1))
        x, last = self.rnn(x)
        return self.head(x.transpose(0, 1)) + self.head(last[-1]).unsqueeze(1)

    return module(
        forward, gru=nn.GRU(8, 6, 2, bias=False), rnn=nn.RNN(6, 9), head=nn.Linear(9, 5)
    )


@structure("hidden 9", "hidden 6", args=(TOKENS,), other=floats(3, 4))
def several_inputs_and_outputs() -> nn.Module:
    def forward(self: Any, x: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor]]:
        a = self.a(x).relu() * self.b(other)[:, None]
        c = self.c(a).relu()
        return self.head(c), [self.side(a), c.sum(-1)]

    return module(
        forward, a=nn.Linear(8, 9), b=nn.Linear(4, 9), c=nn.Linear(9, 6), head=nn.Linear(6, 5),
        side=nn.Linear(9, 3),
    )


@structure("hidden 9", args=({"tokens": TOKENS, "scale": floats(3, 1, 1)},))
def dicts_in_and_out() -> nn.Module:
    def forward(self: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        x = self.a(batch["tokens"]).relu() * batch["scale"]
        return {"logits": self.head(x), "more": {"sum": x.sum(-1)}, "none": None}

    return module(forward, a=nn.Linear(8, 9), head=nn.Linear(9, 5))


@structure("hidden 9", args=(TOKENS,))
def model_output() -> nn.Module:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def forward(self: Any, x: Tensor) -> BaseModelOutputWithPooling:
        x = self.a(x).relu()
        y = self.head(x)
        return BaseModelOutputWithPooling(last_hidden_state=y, pooler_output=y[:, 0])

    return module(forward, a=nn.Linear(8, 9), head=nn.Linear(9, 5))


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


@structure("residual 12", "hidden 3", "other 2", args=(TOKENS,))
def low_rank_adapters() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x) + x @ self.down @ self.up * 0.5
        merged = self.head.weight + self.out @ self.into
        return F.linear(x.relu(), merged, self.head.bias)

    return module(
        forward, a=nn.Linear(8, 12), down=weight(8, 3), up=weight(3, 12),
        head=nn.Linear(12, 5), out=weight(5, 2), into=weight(2, 12),
    )


@structure("head-dim 4~", "head-dim 6", args=(TOKENS,))
def soft_experts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        hidden = torch.einsum("bnc,ech->bneh", x, self.up).relu()
        return torch.einsum("bneh,eho,bne->bno", hidden, self.down, shares)

    return module(forward, router=nn.Linear(8, 4), up=weight(4, 8, 6), down=weight(4, 6, 5))


@structure("other 6~", "head 2", "head-dim 5", "head-dim 5", args=(TOKENS,))
def memory_slots() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 2, 5).transpose(1, 2)
        k = self.keys.view(1, 6, 2, 5).transpose(1, 2).expand(b, -1, -1, -1)
        v = self.values.view(1, 6, 2, 5).transpose(1, 2).expand(b, -1, -1, -1)
        return self.head(attend(q, k, v).transpose(1, 2).reshape(b, n, 10))

    return module(
        forward, q=nn.Linear(8, 10), keys=weight(6, 10), values=weight(6, 10),
        head=nn.Linear(10, 5),
    )


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
        x = torch.where(missing, self.token, self.stem(x))
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


@structure("other 4~", "residual 12", "head 2", "head-dim 6", "head-dim 6", args=(IDS,))
def prompt_tokens() -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        x = torch.cat([self.prompt.expand(ids.shape[0], -1, -1), self.embed(ids)], 1)
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 2, 6).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = x + self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, 12))
        return self.head(x.mean(1))

    return module(
        forward, prompt=weight(1, 4, 12), embed=nn.Embedding(11, 12), qkv=nn.Linear(12, 36),
        out=nn.Linear(12, 12), head=nn.Linear(12, 5),
    )
