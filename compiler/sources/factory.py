"""DATA from a factory of the user's: batches as they are, a Dataset, rows, or texts."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..errors import SourceError
from ..user_code import call_user, user_batches
from .model import import_factory, require_callable_without
from .rows import TRAIN, Read, drawn, of_split


def call_factory(spec: str, split: str) -> Any:
    """What `package.module:factory` gives for a split. Raises SourceError where it takes none."""
    made = import_factory(spec)
    if callable(made) and "split" in _parameters(spec, made):
        return call_user(spec, made, split=split)
    if split != TRAIN:
        raise SourceError(f"{spec} takes no `split`, and {split!r} was asked for: let it take one.")
    return call_user(spec, made) if callable(made) else made


def _parameters(spec: str, made: Callable[..., Any]) -> Sequence[str]:
    """The names of what a factory takes. Raises SourceError where it needs more than `split`."""
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # of a built-in that does not tell
        return ()
    require_callable_without(spec, parameters.values(), "split")
    return list(parameters)


def factory_rows(name: str, made: Any, split: str, max_samples: int | None = None) -> Read | None:
    """Rows, where a factory gave texts or what `datasets` keeps; of a set that is streamed, the
    first `max_samples`. None where it gave batches. Raises SourceError where there are no rows."""
    if isinstance(made, Sequence) and made and isinstance(made[0], str):
        return Read([{"text": text} for text in made])
    splits = isinstance(made, Mapping) and made and all(map(_has_columns, made.values()))
    table: Any = of_split(name, made, split) if splits else made
    if not _has_columns(table):
        return None
    if not hasattr(table, "__len__"):
        if max_samples is None:
            raise SourceError(
                f"{name} gave a data set that is streamed, without a length: say how many rows of "
                "it to read with --max-samples."
            )
        table = list(table.take(max_samples))
    if not len(table):
        raise SourceError(f"{name} gave a data set without rows: pass one that is not empty.")
    return Read(table)


def _has_columns(made: Any) -> bool:
    """Whether it is a data set of `datasets`, which need not be installed."""
    return hasattr(made, "column_names") and (hasattr(made, "select") or hasattr(made, "take"))


def factory_batches(
    name: str, made: Any, batch_size: int, max_samples: int | None, seed: int, shuffle: bool
) -> Iterable[Any]:
    """Batches that may be gone through again: a loader or a list as it is, so that what shuffles or
    augments goes on doing so; a Dataset in batches, in another order each time with `shuffle`; what
    can be read once only as a list.

    `max_samples`: of a Dataset so many are drawn, by the `seed`; of batches the first ones are read
    up to so many samples, each time anew. Raises SourceError for what gives no batches.
    """
    if isinstance(made, IterableDataset):
        made = DataLoader(made, batch_size=batch_size)
    elif isinstance(made, Dataset):
        size = len(made)  # type: ignore[arg-type]
        if max_samples is not None and max_samples < size:
            made, max_samples = Subset(made, drawn(size, max_samples, seed)), None
        made = DataLoader(made, batch_size=batch_size, shuffle=shuffle and size > 0)
    if not isinstance(made, Iterable) or isinstance(made, (str, Tensor, Mapping)):
        raise SourceError(
            f"{name} gave {type(made).__name__}: return an iterable of batches, a Dataset, or a "
            "list of texts."
        )
    if isinstance(made, Iterator):
        made = list(_first(user_batches(name, made), max_samples))
    elif max_samples is not None:
        made = _First(made, max_samples)
    if _is_empty(made):
        raise SourceError(f"{name} gave no batches: return an iterable that is not empty.")
    return made


class _First:
    """The first batches of what may be read again, up to so many samples; read as they are asked
    for, so that what they come from may be endless."""

    def __init__(self, batches: Iterable[Any], samples: int) -> None:
        self.batches, self.samples = batches, samples
        self.length: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return _first(self.batches, self.samples)

    def __len__(self) -> int:
        """Counted once: the last batch of a loader may be smaller, and not all have a length."""
        if self.length is None:
            with torch.random.fork_rng(devices=[]):
                self.length = sum(1 for _ in self)
        return self.length


def _first(batches: Iterable[Any], samples: int | None) -> Iterator[Any]:
    count = 0
    for batch in batches:
        yield batch
        count += _size(batch)
        if samples is not None and count >= samples:
            return


def _is_empty(batches: Iterable[Any]) -> bool:
    try:
        return len(batches) == 0  # type: ignore[arg-type]
    except TypeError:  # no length: look for a first one, and leave torch's random numbers as before
        with torch.random.fork_rng(devices=[]):
            return not list(itertools.islice(user_batches("DATA", batches), 1))


def _size(batch: Any) -> int:
    """Samples in a batch: the first axis of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    inner = list(batch.values()) if isinstance(batch, Mapping) else batch
    return _size(inner[0]) if isinstance(inner, (list, tuple)) and inner else 1
