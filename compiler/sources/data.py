"""What DATA may be: files, directories, `datasets` ids, or a factory of batches; as batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SourceError
from .factory import call_factory, factory_batches, factory_rows
from .image_folder import image_transform
from .labels import as_tensor, row_labels
from .model import Source
from .rows import Entries, Row, read_rows, some_of
from .tasks import find_columns, named_task
from .tokenization import (
    collator,
    encode,
    padding_tokenizer,
    require_words,
    take_segments,
    token_limit,
)

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
    - `package.module:factory`: gives batches (a loader, or any iterable), a Dataset of samples,
      one of `datasets`, which is read by its rows, or texts.

    `task` is inferred from the model's class; it says which columns are read and how they are fed.
    `columns`: of what role is which (text, pair, tokens, label, target, image); `#COLUMN` behind a
    file or id names that of the text; others are found by their usual names. Texts become dicts of
    tensors (batch, longest in the batch, or `pad_to`) by the model's tokenizer, cut to `max_length`
    tokens, images by its processor, opened as they are needed. There are `labels` where there is
    such a column. `max_samples`: at most so many, drawn at random by the `seed`; of a set that is
    streamed, the first. `shuffle`: in another order each time, by torch's random numbers. A
    factory's own batches come in its own order, and of them the first are taken. Where texts come
    in pairs and the model takes `token_type_ids`, the source's example call gets them. Raises
    SourceError, with the remedy, for data that is absent, empty or cannot be read, for columns that
    do not exist, and for an entry that has nothing, or something else, under a column that is read.
    """
    counts = {"--batch-size": batch_size, "--max-samples": max_samples}
    for option, value in (counts | {"--max-length": max_length, "--pad-to": pad_to}).items():
        if value is not None and value < 1:
            raise SourceError(f"{option} {value} leaves nothing to read: give 1 or more.")
    if not spec.strip():
        raise SourceError("DATA is empty: pass a file, a folder, or package.module:factory.")
    name, _, column = (spec, "", "") if Path(spec).exists() else spec.partition("#")
    named = dict(columns or {}) | ({"text": column} if column else {})
    if _FACTORY.fullmatch(name) and not Path(name).exists():
        made = call_factory(name, split)
        read = factory_rows(name, made, split, max_samples)
        if read is None:
            return factory_batches(name, made, batch_size, max_samples, seed, shuffle)
    else:
        read = read_rows(name, split)
    entries = some_of(name, read.rows, max_samples, seed)
    chosen = named_task(task, source)
    present = entries.columns()
    strings = [c for c in present if isinstance(entries.rows[0].get(c), str)]
    found = find_columns(name, chosen, present, named, strings)
    for column_of_role in found.values():
        _require_filled(entries, column_of_role)
    if "tokens" in found:
        require_words(entries, found["tokens"])
    labels = (
        row_labels(entries, found["label"], chosen, source, read.classes)
        if "label" in found
        else None
    )
    if "image" in found:
        dataset, collate = _images(entries.rows, found["image"], labels, source, read.base)
    else:
        tokenizer = padding_tokenizer(source)
        if "pair" in found:
            take_segments(source, tokenizer)
        limit = token_limit(tokenizer, source.model, max_length, pad_to)
        dataset = _Samples(encode(entries, found, labels, chosen, tokenizer, limit))
        collate = collator(chosen, tokenizer, source, pad_to)
    return DataLoader(dataset, batch_size, shuffle=shuffle, collate_fn=collate)


def _require_filled(entries: Entries, column: str) -> None:
    empty = next((i for i, v in enumerate(entries.values(column)) if v is None), None)
    if empty is not None:
        raise SourceError(
            f"{entries.where(empty)} has nothing under {column!r}: fill it in, leave the entry "
            "out, or rename the column where it is not to be read."
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
