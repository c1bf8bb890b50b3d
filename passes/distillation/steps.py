"""How a loader becomes a number of steps: planning them, reading them, and the rate of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .losses import DistillError


def refuse_unbatched(loader: Any) -> None:
    """Refuse what would be iterated by row, key or sample rather than by batch.

    Raises:
        DistillError: a tensor, a dict, a dataset that is not iterable, or nothing to iterate.
    """
    by_sample = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if by_sample or isinstance(loader, (Tensor, Mapping)) or not isinstance(loader, Iterable):
        raise DistillError(
            f"train_loader is a {type(loader).__name__}, which does not yield batches:"
            " pass a DataLoader, or a list of batches."
        )


def total_steps(loader: Iterable[Any], epochs: int, steps: int | None = None) -> int:
    """The optimizer steps of a run, one per batch; `steps` overrides `epochs`.

    The schedule needs the number beforehand, and so a loader with a length, or `steps`.

    Raises:
        DistillError: the loader is empty, or has no length and `steps` is not given.
    """
    if steps is not None:
        return steps
    try:
        length = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:
        once = isinstance(loader, Iterator)
        raise DistillError(
            f"train_loader {'can be read only once' if once else 'has no length'}, so {epochs}"
            " epochs of it cannot be planned: pass a list or a DataLoader, or steps=."
        ) from None
    if length == 0:
        raise _empty()
    return epochs * length


def batches(loader: Iterable[Any], total: int) -> Iterator[Any]:
    """`total` batches, from the beginning again whenever the loader ends.

    Raises:
        DistillError: the loader is empty, or is a generator that ended before.
    """
    done = 0
    while done < total:
        before = done
        for batch in loader:
            yield batch
            done += 1
            if done == total:
                return
        if done == 0:
            raise _empty()
        if done == before:
            raise DistillError(
                f"train_loader ended after {done} of {total} steps and cannot be read again:"
                " pass a list or a DataLoader, or fewer steps."
            )


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """The learning rate's factor at a step from 0: linear up to 1, then half a cosine towards 0.

    Loshchilov and Hutter, "SGDR" (2017), equation 5, without restarts; `warmup` is a share of the
    steps.
    """
    rising = int(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _empty() -> DistillError:
    return DistillError("train_loader is empty: pass at least one batch, or leave Distill out.")
