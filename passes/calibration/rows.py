"""The input and output of a contraction as matrices: one row per position, one block at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 24  # entries of one block of unfolded patches


@dataclasses.dataclass(frozen=True)
class Patches:
    """How a convolution reads its input: [N, C, ...] in patches."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, given: dict[str, Any], kernel: tuple[int, ...]) -> Patches:
        """From the op's arguments by schema name; a number stands for every axis."""
        rank = len(kernel)
        padding = given["padding"]
        return cls(
            kernel,
            _each(given["stride"], rank),
            padding if isinstance(padding, str) else _each(padding, rank),
            _each(given["dilation"], rank),
            given["groups"],
        )

    def blocks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [G, n, D] of the input beside rows [G, n, O] of the output, in order of position."""
        rank = len(self.kernel)
        if x.dim() == rank + 1:  # an unbatched call
            x, y = x[None], y[None]
        x = F.pad(x, self._margins())
        inner = x.shape[1] * math.prod(self.kernel)
        step = max(1, BLOCK // max(1, y[0, 0].numel() * inner))
        for part, out in zip(x.split(step), y.split(step), strict=True):
            lines = max(1, BLOCK // max(1, inner * out[0, 0, 0].numel()))
            if len(part) > 1 or lines >= out.shape[2]:
                yield self._grouped(self._unfold(part)), self._grouped(out.flatten(2))
                continue
            span = self.dilation[0] * (self.kernel[0] - 1) + 1
            for start in range(0, out.shape[2], lines):  # one sample is too large: along it
                some = out[:, :, start : start + lines]
                first = self.stride[0] * start
                own = part[:, :, first : first + self.stride[0] * (some.shape[2] - 1) + span]
                yield self._grouped(self._unfold(own)), self._grouped(some.flatten(2))

    def _unfold(self, x: Tensor) -> Tensor:
        """[N, C, ...] as [N, C * taps, positions]: what the weight [O, C, taps] multiplies."""
        rank = len(self.kernel)
        for axis in range(rank):
            span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(2 + axis, span, self.stride[axis])[..., :: self.dilation[axis]]
        places, taps = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
        return x.permute(0, 1, *taps, *places).flatten(2 + rank).flatten(1, 1 + rank)

    def _grouped(self, values: Tensor) -> Tensor:
        """[N, G*C, L] as [G, N*L, C]."""
        split = values.unflatten(1, (self.groups, -1))
        return split.permute(1, 0, 3, 2).flatten(1, 2)

    def _margins(self) -> list[int]:
        """What F.pad adds, last axis first."""
        margins: list[int] = []
        for i in reversed(range(len(self.kernel))):
            if isinstance(self.padding, str):
                total = self.dilation[i] * (self.kernel[i] - 1) if self.padding == "same" else 0
                margins += [total // 2, total - total // 2]  # as torch: the odd one at the end
            else:
                margins += [self.padding[i]] * 2
        return margins


def flat_rows(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows [1, n, D] and [1, n, O] of a linear layer: all axes but the last count positions."""
    yield x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])


def sample(x: Tensor, y: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A seeded random `share` of the rows (axis 1), at least one."""
    chosen = choice(x.shape[1], share, generator)
    if chosen is None:
        return x, y
    chosen = chosen.to(x.device)
    return x.index_select(1, chosen), y.index_select(1, chosen)


def choice(rows: int, share: float, generator: torch.Generator) -> Tensor | None:
    """The places of a random share of so many rows, ascending; None for all of them."""
    if share >= 1 or rows == 0:
        return None
    return torch.randperm(rows, generator=generator)[: max(1, round(share * rows))].sort().values


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values
