"""Which rows are kept apart to choose by: none that a layer has also been fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 4  # one part of so many is kept apart
_ALIKE = 1e-5  # of the root mean square of the rows' projections: rows as close are the same row


def held_out(batch: int) -> bool:
    """Whether a batch is one of those kept apart, where there are enough."""
    return batch % PART == PART - 1


class Split:
    """Deals the rows of a layer into those to fit and those kept apart, batch by batch.

    Every `PART`th batch is kept apart, or of fewer batches every `PART`th sample; of fewer samples
    the last rows. A row that was also among those to fit is one of these: data that repeat
    themselves are no evidence. Rows are told apart by two random projections.
    """

    def __init__(self, batches: int) -> None:
        self.by_batch = batches >= PART
        self.order = sorted(range(batches), key=lambda b: (held_out(b) and self.by_batch, b))
        self.distinct = 0
        self._known: Tensor | None = None
        self._fitted: Tensor | None = None
        self._vector: Tensor | None = None
        self._unit = 0.0

    def deal(self, batch: int, x: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """True at the rows of x [G, N, D] to fit, and at those kept apart. `samples` int64 [N]:
        which of the batch each row is of."""
        rows = x.shape[1]
        if self.by_batch:
            apart = torch.full((rows,), held_out(batch))
        else:
            apart = samples % PART == PART - 1
            if not bool(apart.any()) and rows >= PART:
                apart = torch.arange(rows) >= rows - rows // PART
        keys = self._keys(x)
        fresh = _unseen(keys, self._known)
        self.distinct += len(torch.unique(keys[fresh]))
        self._known = keys if self._known is None else torch.cat([self._known, keys[fresh]])
        own = keys[~apart]
        self._fitted = own if self._fitted is None else torch.cat([self._fitted, own]).unique()
        apart = apart & _unseen(keys, self._fitted)
        return ~apart, apart

    def _keys(self, x: Tensor) -> Tensor:
        if self._vector is None:
            generator = torch.Generator().manual_seed(0)
            shape = x.shape[0], x.shape[2], 2
            self._vector = torch.randn(shape, generator=generator, dtype=torch.float64).to(x)
        found = (x @ self._vector.to(x)).sum(0).double().cpu()
        if not self._unit:
            self._unit = _ALIKE * float(found.square().mean().sqrt())
        places = (found / (self._unit or 1.0)).round().clamp(-(2.0**30), 2.0**30).to(torch.int64)
        return places[:, 0] * 2**32 + places[:, 1]


def _unseen(keys: Tensor, known: Tensor | None) -> Tensor:
    return torch.ones_like(keys, dtype=torch.bool) if known is None else ~torch.isin(keys, known)
