"""Nets that use a channel axis as space, time, batch or norm group: found by random networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nets import IDS, IMAGE, TOKENS, conv, module, structure, weight
from torch import Tensor, nn


@structure("channel 5", args=(IMAGE,))
def pixels_moved_between_channels() -> nn.Module:
    """Channels stand where pixel_shuffle, pixel_unshuffle, unfold and fold move pixels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b, c, d = (part(x) for part in (self.a, self.b, self.c, self.d))
        parts = [
            F.pixel_shuffle(F.pad(a.transpose(1, 3), (0, 0, 0, 0, 1, 1)), 2),
            F.pixel_unshuffle(b.transpose(1, 3), 2),
            F.unfold(c.transpose(1, 3), 2, stride=2),
            F.fold(d.transpose(1, 3).reshape(-1, 36, 6), (4, 3), 2),
            *(self.head(t).relu() for t in (a, b, c, d)),
        ]
        return sum(t.flatten(1).sum(1) for t in parts)

    return module(forward, a=conv(4, 6), b=conv(4, 6), c=conv(4, 6), d=conv(4, 6), head=conv(6, 5))


@structure("hidden 4", "hidden 6", args=(TOKENS,))
def recurrence_along_channels() -> nn.Module:
    """What a recurrence steps through keeps its order; what it reads does not."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y, z = self.stem(x), self.side(x)
        first, _ = self.gru(y.transpose(1, 2))
        second, _ = self.lstm(z.permute(2, 0, 1))
        y = self.head(first) + self.tail(second).permute(1, 0, 2)
        return y.sum(1) + self.both(self.stem(x) + z).sum(1)

    return module(
        forward,
        stem=nn.Linear(8, 9),
        side=nn.Linear(8, 9),
        gru=nn.GRU(7, 4, batch_first=True),
        lstm=nn.LSTM(7, 6),
        head=nn.Linear(4, 5),
        tail=nn.Linear(6, 5),
        both=nn.Linear(9, 5),
    )


@structure("other 3~", "hidden 6", "other 4", args=(TOKENS,))
def copies_summed_again() -> nn.Module:
    """No parameter masks a copy: a sum over copies alone counts those that are to go."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x).repeat(1, 1, 3)
        z = self.side(x).unsqueeze(2).expand(-1, -1, 4, -1).flatten(1, 2)
        return (
            self.head(y) + y.sum(-1, keepdim=True) + (z.transpose(1, 2) @ self.scale).unsqueeze(1)
        )

    return module(
        forward,
        stem=nn.Linear(8, 6),
        side=nn.Linear(8, 5),
        head=nn.Linear(18, 5),
        scale=weight(28),
    )


@structure("hidden 9~", args=(TOKENS,))
def group_norm_along_channels() -> nn.Module:
    """Tokens are the norm's channels: its statistics run over what is pruned."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(forward, stem=nn.Linear(8, 9), norm=nn.GroupNorm(7, 7), head=nn.Linear(9, 5))


@structure("hidden 10", "other 3~", args=(TOKENS,))
def picked_entries_summed() -> nn.Module:
    """A masked index is index 0, not a zero: a sum over what was looked up is not exact."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = (x[..., [1, 5, 3]] + 1) * self.scale
        return self.head(self.wide(x).relu()) + y.sum(-1, keepdim=True)

    return module(forward, wide=nn.Linear(8, 10), head=nn.Linear(10, 5), scale=torch.tensor(2.0))


@structure("hidden 9", args=(TOKENS,))
def broadcast_pairs_and_a_lookup() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(self.a(x)[:, :, None], self.b(x)[:, None])
        listed = torch.isin(x.sum(-1).long(), self.listed)
        return self.head((a * b).mean(2)) * listed[..., None]

    return module(
        forward,
        a=nn.Linear(8, 9),
        b=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
        listed=torch.tensor([-1, 0, 1, 2]),
    )


@structure("other 2~", "hidden 5", args=(TOKENS,))
def copies_of_an_input_summed() -> nn.Module:
    """No parameter masks a copy: where copies are summed, they count."""

    def forward(self: Any, x: Tensor) -> Tensor:
        copies = x.repeat(1, 2, 1)
        return self.head(self.a(copies).relu().sum(1)) + self.tokens(copies.mean(-1))

    a = nn.Linear(8, 5, bias=False)
    return module(forward, a=a, head=nn.Linear(5, 3), tokens=nn.Linear(14, 3))


@structure("hidden 9", args=(IDS,))
def as_many_tokens_as_there_are_up_to_a_limit() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        best = x.sum(-1).topk(min(x.shape[1], 50), dim=-1).indices  # a symbolic number of them
        return self.head(x).gather(1, best[..., None].expand(-1, -1, 5))

    return module(forward, up=nn.Embedding(11, 9), head=nn.Linear(9, 5))
