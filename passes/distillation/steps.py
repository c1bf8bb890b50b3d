"""How a loader becomes a number of steps: planning them, reading them, and the rate of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ...compiler.user_code import user_batches
from .losses import DistillError


def refuse_unbatched(loader: Any) -> None:
    """Refuse what would be iterated by row, key or sample rather than by batch.

    Raises:
        DistillError: a tensor, a dict, a dataset that is not iterable, or nothing to iterate.
    """
    by_sample = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    by_sample |= hasattr(loader, "column_names")  # of `datasets`: rows
    if by_sample or isinstance(loader, (Tensor, Mapping)) or not isinstance(loader, Iterable):
        raise DistillError(
            f"train_loader is a {type(loader).__name__}, which does not yield batches:"
            " pass a DataLoader, or a list of batches."
        )


def total_steps(
    loader: Iterable[Any], epochs: int, steps: int | None = None, accumulate: int = 1
) -> int:
    """The optimizer steps of a run, one for every `accumulate` batches; `steps` overrides `epochs`.

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
    return max(1, epochs * length // accumulate)


def batches(loader: Iterable[Any], total: int, seed: int = 0) -> Iterator[Any]:
    """`total` batches, from the beginning again whenever the loader ends.

    torch's random numbers are seeded anew before each epoch, by which a run that was interrupted
    gets the order of a shuffling loader again.

    Raises:
        DistillError: the loader is empty, or is a generator that ended before.
    """
    done = 0
    for epoch in itertools.count():
        before = done
        torch.manual_seed(seed + epoch)
        for batch in user_batches("train_loader", loader):
            yield batch
            done += 1
            if done == total:
                return
        if done == 0:
            raise _empty()
        if done == before:
            raise DistillError(
                f"train_loader ended after {done} of {total} batches and cannot be read again:"
                " pass a list or a DataLoader, or fewer steps."
            )


def learning_rate_factor(step: int, total: int, warmup: float, shape: str = "cosine") -> float:
    """The learning rate's factor at a step from 0: linear up to 1, then down towards 0 in a line or
    in half a cosine (Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts).

    `warmup` is a share of the steps.
    """
    rising = int(warmup * total)
    if step < rising:
        return (step + 1) / rising
    along = (step - rising) / max(1, total - rising)
    return max(0.0, 1 - along) if shape == "linear" else 0.5 * (1 + math.cos(math.pi * along))


def _empty() -> DistillError:
    return DistillError("train_loader is empty: pass at least one batch, or leave Distill out.")
