"""What DATA may be: files, directories, `datasets` ids, or a factory of batches; as batches."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SourceError
from .image_folder import image_transform
from .labels import as_tensor, row_labels
from .model import Source, import_factory
from .rows import TRAIN, Read, Row, columns_of, read_rows, some_of
from .tasks import find_columns, named_task
from .tokenization import collator, encode, padding_tokenizer, take_segments, token_limit

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _Samples(Dataset[Any]):
    """Samples in a list, or made when they are asked for."""

    def __init__(self, samples: Sequence[Any], make: Callable[[Any], Any] | None = None) -> None:
        self.samples, self.make = samples, make

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        return sample if self.make is None else self.make(sample)


def load_data(
    spec: str,
    source: Source,
    *,
    batch_size: int = 32,
    max_samples: int | None = None,
    split: str = "train",
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    pad_to: int | None = None,
    seed: int = 0,
    shuffle: bool = False,
) -> Iterable[Any]:
    """Read DATA into batches for `source.model`, which may be gone through again and again.

    - A file: `.txt` (a sample a line), `.jsonl`, `.json` (a list), `.csv`, `.tsv`, `.parquet`.
    - A directory: images in a folder for each class, a data set saved by `datasets`, or files named
      as the split.
    - A `datasets` id, `NAME` or `NAME@CONFIGURATION`, of which `split` is read.
    - `package.module:factory`: gives batches (a loader, or any iterable), a Dataset, or texts.

    `task` is inferred from the model's class; it says which columns are read and how they are fed.
    `columns`: of what role is which (text, pair, tokens, label, target, image); `#COLUMN` behind a
    file or id names that of the text; others are found by their usual names. Texts become dicts of
    tensors (batch, longest in the batch, or `pad_to`) by the model's tokenizer, cut to `max_length`
    tokens, images by its processor, opened as they are needed. There are `labels` where there is
    such a column. `max_samples`: at most so many, drawn at random by the `seed`. `shuffle`: in
    another order each time, by torch's random numbers. Where texts come in pairs and the model
    takes `token_type_ids`, the source's example call gets them. Raises SourceError, with the
    remedy, for data that is absent, empty or cannot be read, and columns that do not exist.
    """
    name, _, column = (spec, "", "") if Path(spec).exists() else spec.partition("#")
    named = dict(columns or {}) | ({"text": column} if column else {})
    if _FACTORY.fullmatch(name) and not Path(name).exists():
        made = _call_factory(name, split)
        if not (isinstance(made, Sequence) and made and isinstance(made[0], str)):
            return _take(name, made, batch_size, max_samples)
        read = Read([{"text": text} for text in made])
    else:
        read = read_rows(name, split)
    rows = some_of(read.rows, max_samples, seed)
    chosen = named_task(task, source)
    present = columns_of(rows)
    strings = [c for c in present if isinstance(rows[0].get(c), str)]
    found = find_columns(name, chosen, present, named, strings)
    for role, own in found.items():
        _require_filled(name, rows, own if role in chosen.needs else None)
    labels = (
        row_labels(name, rows, found["label"], source, read.classes) if "label" in found else None
    )
    if "image" in found:
        dataset, collate = _images(rows, found["image"], labels, source, read.base)
    else:
        tokenizer = padding_tokenizer(source)
        if "pair" in found:
            take_segments(source, tokenizer)
        limit = token_limit(tokenizer, source.model, pad_to or max_length)
        dataset = _Samples(encode(rows, found, labels, chosen, tokenizer, limit))
        collate = collator(chosen, tokenizer, source, pad_to)
    return DataLoader(dataset, batch_size, shuffle=shuffle, collate_fn=collate)


def _require_filled(name: str, rows: Sequence[Row], column: str | None) -> None:
    values = (row.get(column) for row in rows) if column is not None else ()
    empty = next((i for i, value in enumerate(values, 1) if value is None), None)
    if empty is not None:
        raise SourceError(
            f"entry {empty} of {name} has nothing under {column!r}: fill it in, or leave the entry "
            "out."
        )


def _images(
    rows: Sequence[Row], column: str, labels: Sequence[Any] | None, source: Source, base: Path
) -> tuple[_Samples, Callable[[list[Any]], Any]]:
    transform = image_transform(source)
    positional = bool(source.args)
    key = next(iter(source.kwargs), "pixel_values")

    def make(index: int) -> tuple[Tensor, Any]:
        image = rows[index][column]
        if isinstance(image, str) and not Path(image).is_file():  # a path beside the table
            image = base / image
        return transform(image), None if labels is None else labels[index]

    def collate(samples: list[tuple[Tensor, Any]]) -> Any:
        pixels = torch.stack([image for image, _ in samples])
        own = None if labels is None else as_tensor([label for _, label in samples])
        if positional:
            return pixels if own is None else (pixels, own)
        return {key: pixels} if own is None else {key: pixels, "labels": own}

    return _Samples(range(len(rows)), make), collate


def _call_factory(spec: str, split: str) -> Any:
    made = import_factory(spec)
    if callable(made) and "split" in inspect.signature(made).parameters:
        return made(split=split)
    if split != TRAIN:
        raise SourceError(f"{spec} takes no `split`, and {split!r} was asked for: let it take one.")
    return made() if callable(made) else made


def _take(name: str, made: Any, batch_size: int, max_samples: int | None) -> list[Any]:
    """Batches as the factory gave them, up to `max_samples` samples; a Dataset is batched."""
    if isinstance(made, Dataset):
        made = DataLoader(made, batch_size=batch_size)
    if not isinstance(made, Iterable) or isinstance(made, (str, Tensor, Mapping)):
        raise SourceError(
            f"{name} gave {type(made).__name__}: return an iterable of batches, a Dataset, or a "
            "list of texts."
        )
    batches: list[Any] = []
    count = 0
    for batch in made:
        if max_samples is not None and count >= max_samples:
            break
        batches.append(batch)
        count += _size(batch)
    if not batches:
        raise SourceError(f"{name} gave no batches: return an iterable that is not empty.")
    return batches


def _size(batch: Any) -> int:
    """Samples in a batch: the first axis of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    inner = list(batch.values()) if isinstance(batch, Mapping) else batch
    return _size(inner[0]) if isinstance(inner, (list, tuple)) and inner else 1
