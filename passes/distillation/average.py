"""An average of the weights along a run, which is measured and kept instead of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of the trained tensors, which `live` gives as they are now;
    `decay` None keeps none."""

    def __init__(self, decay: float | None, live: Callable[[], Sequence[Tensor]]) -> None:
        self._all = live
        self.kept = [] if decay is None else [t.detach().clone() for t in self._live()]
        self._update = None if decay is None else get_ema_multi_avg_fn(decay)

    def _live(self) -> list[Tensor]:
        return [tensor for tensor in self._all() if tensor.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        if self._update is not None:
            self._update(self.kept, [t.detach() for t in self._live()], 0)  # type: ignore[arg-type]

    @contextmanager
    def in_place(self, stay: bool = False) -> Iterator[None]:
        """The average in the model's tensors inside, and afterwards too with `stay`."""
        former = [t.detach().clone() for t in self._live()] if self.kept else []
        with torch.no_grad():
            for live, kept in zip(self._live(), self.kept, strict=False):
                live.copy_(kept)
        yield
        with torch.no_grad():
            for live, old in zip(self._live(), [] if stay else former, strict=False):
                live.copy_(old)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for own, kept in zip(self.kept, state["kept"], strict=True):
                own.copy_(kept)  # what is read lies on the CPU
