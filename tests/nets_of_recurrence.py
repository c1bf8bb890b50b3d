"""Nets that run step by step over tokens."""

from __future__ import annotations

from typing import Any

from nets import TOKENS, module, structure
from torch import Tensor, nn


@structure("hidden 6", "hidden 7", args=(TOKENS,))
def lstm_in_two_directions() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, (last, _) = self.lstm(self.stem(x))
        return self.head(x) + self.tail(last[-1])[:, None]

    return module(
        forward,
        stem=nn.Linear(8, 7),
        head=nn.Linear(12, 5),
        tail=nn.Linear(6, 5),
        lstm=nn.LSTM(7, 6, 2, bidirectional=True, batch_first=True),
    )


@structure("hidden 6", "hidden 9", args=(TOKENS,))
def gru_and_rnn() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, _ = self.gru(x.transpose(0, 1))
        x, last = self.rnn(x)
        return self.head(x.transpose(0, 1)) + self.head(last[-1]).unsqueeze(1)

    return module(forward, gru=nn.GRU(8, 6, 2, bias=False), rnn=nn.RNN(6, 9), head=nn.Linear(9, 5))


@structure("hidden 6", "hidden 9", args=(TOKENS,))
def lstm_with_projections() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, (last, cell) = self.lstm(x)
        y, (end, _) = self.deep(x)
        return (
            self.head(y) + (self.tail(last[0]) + self.side(cell[-1]) + self.top(end[-1]))[:, None]
        )

    return module(
        forward,
        lstm=nn.LSTM(8, 6, batch_first=True, proj_size=4),
        deep=nn.LSTM(4, 9, 2, bidirectional=True, batch_first=True, proj_size=3, bias=False),
        head=nn.Linear(6, 5),
        tail=nn.Linear(4, 5),
        side=nn.Linear(6, 5),
        top=nn.Linear(3, 5),
    )


@structure("hidden 6", "hidden 9", "hidden 7", args=(TOKENS,))
def cells_unrolled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 6)
        g = r = None
        for t in range(3):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
            r = self.rnn(g, r)
        return self.head(r) + self.tail(c)

    return module(
        forward,
        lstm=nn.LSTMCell(8, 6),
        gru=nn.GRUCell(6, 9, bias=False),
        rnn=nn.RNNCell(9, 7),
        head=nn.Linear(7, 5),
        tail=nn.Linear(6, 5),
    )
