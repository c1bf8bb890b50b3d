"""The tensors of the original are what they were, whatever a pass did."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import PassError
from .inference.graph import Graph

_COLUMNS = 1021  # a prime: what is exchanged between rows or channels shows in another sum
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class OriginalTensors:
    """What the captured graph's tensors hold now; `check` raises where a pass wrote to them.

    Told by sums over the bits of every `_COLUMNS`th entry, and no copies: versions miss what is
    written past them (`.data`, numpy), and count what a forward writes and is given back.
    """

    def __init__(self, graph: Graph) -> None:
        self.tensors = dict(graph.whole.program.tensors)
        self.before = {name: _state(tensor) for name, tensor in self.tensors.items()}

    def check(self, who: str) -> None:
        """Raise PassError, naming the pass and the tensor."""
        for name, tensor in self.tensors.items():
            if not _same(self.before[name], _state(tensor)):
                raise PassError(
                    f"{who} wrote to '{name}' of the original model, which passes may only read: "
                    "clone what it changes, or change state.dense. The model holds the changed "
                    "values now; load it again."
                )


def _state(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The sums, and the entries behind the last whole row of them."""
    if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or not tensor.numel():
        return torch.zeros(()), torch.zeros(())
    data = tensor.detach()
    data = torch.view_as_real(data) if data.is_complex() else data
    bits = data.contiguous().view(_BITS[data.element_size()]).reshape(-1)
    whole = bits.numel() // _COLUMNS * _COLUMNS
    return bits[:whole].view(-1, _COLUMNS).sum(0, dtype=torch.int64), bits[whole:].clone()


def _same(before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, now, strict=True))
