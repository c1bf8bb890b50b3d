"""The tensors of the original are what they were, whatever a pass did."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import PassError
from .inference.graph import Graph

_SAMPLE = 64  # entries that are compared one by one, spread over the tensor
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class OriginalTensors:
    """What the captured graph's tensors hold now; `check` raises where a pass wrote to them.

    Versions show writes by ops; sums of bits and a sample of entries those that go past versions
    (`.data`, numpy). No copy is kept.
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


def _state(tensor: Tensor) -> tuple[int, Tensor, Tensor]:
    """(version, sum of the bits, sample): a version of -1 for tensors that have none."""
    version = -1 if tensor.is_inference() else tensor._version
    if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or not tensor.numel():
        return version, torch.zeros(()), torch.zeros(())
    data = tensor.detach()
    data = torch.view_as_real(data) if data.is_complex() else data
    bits = data.contiguous().view(_BITS[data.element_size()]).reshape(-1)
    step = max(1, bits.numel() // _SAMPLE)
    return version, bits.sum(dtype=torch.int64), bits[::step].clone()


def _same(before: tuple[int, Tensor, Tensor], now: tuple[int, Tensor, Tensor]) -> bool:
    return before[0] == now[0] and all(
        torch.equal(a, b) for a, b in zip(before[1:], now[1:], strict=True)
    )
