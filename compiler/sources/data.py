"""What DATA may be: a text, jsonl or csv file, a `datasets` id, or a factory of batches."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..cause import cause
from ..errors import SourceError
from .model import Source, import_factory
from .tokenization import tokenized_batches

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TEXT_COLUMNS = ("text", "sentence", "content", "document", "review", "question", "body", "prompt")
_LABEL_COLUMNS = ("labels", "label")
Row = Mapping[str, Any]


def load_data(
    spec: str,
    source: Source,
    *,
    batch_size: int = 32,
    max_samples: int | None = None,
    split: str = "train",
) -> list[Any]:
    """Read DATA into batches for `source.model`.

    - A file: `.txt` (a sample a line), `.jsonl`, `.json` (a list), `.csv`, `.tsv`.
    - A `datasets` id, `NAME` or `NAME@CONFIGURATION`, of which `split` is read.
    - `package.module:factory`: gives batches (a loader, or any iterable), a Dataset, or texts.

    `#COLUMN` behind a file or id names the text column; otherwise it is found. Texts become dicts
    of tensors (batch, longest in the batch) by the model's tokenizer, restricted to the inputs the
    model is run on, with `labels` where there is such a column. At most `max_samples` samples.
    Raises SourceError, with the remedy, for data that is absent, empty or cannot be read.
    """
    name, _, column = (spec, "", "") if Path(spec).is_file() else spec.partition("#")
    path = Path(name)
    rows: Iterable[Row]
    if path.is_file():
        rows = _read_file(path)
    elif _FACTORY.fullmatch(name):
        made = _call_factory(name, split)
        if isinstance(made, Sequence) and made and isinstance(made[0], str):
            rows = ({"text": text} for text in made)
        else:
            return _take(name, made, batch_size, max_samples)
    elif path.exists() or path.suffix in _READERS:
        what = "is a directory" if path.is_dir() else "does not exist"
        raise SourceError(f"{name} {what}: pass a {', '.join(_READERS)} file.")
    else:
        rows = _read_datasets(name, split)
    samples = list(islice(rows, max_samples))
    if not samples:
        raise SourceError(f"{name} holds no samples: pass a file or split that is not empty.")
    text_column = _text_column(name, samples[0], column)
    texts = [row.get(text_column) for row in samples]
    if None in texts:
        raise SourceError(
            f"entry {texts.index(None) + 1} of {name} has nothing under {text_column!r}: fill it "
            "in, or leave the entry out."
        )
    labels = _labels(name, samples, source)
    return tokenized_batches([str(text) for text in texts], labels, source, batch_size)


def _read_text(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8") as lines:
        yield from ({"text": stripped} for line in lines if (stripped := line.strip()))


def _read_json_lines(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _object(path, number, json.loads(line))


def _read_json(path: Path) -> Iterable[Row]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, list):
        raise SourceError(
            f"{path} is not a JSON list of objects: write one object a line (.jsonl)."
        )
    return [_object(path, number, item) for number, item in enumerate(found, 1)]


def _object(path: Path, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise SourceError(f'{path}: entry {number} is no JSON object: write {{"text": "..."}}.')
    return item


def _read_table(path: Path) -> Iterable[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")


_READERS = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
}


def _read_file(path: Path) -> Iterable[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(
            f"{path} has no known suffix: name it {', '.join(_READERS)}, by what it holds."
        )
    try:
        yield from reader(path)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not {path.suffix} in UTF-8 ({error}): convert it.") from error


def _read_datasets(name: str, split: str) -> Iterable[Row]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            f"{name} is no existing file, and for the id of a data set datasets is not installed: "
            "pip install 'prunec[data]'."
        ) from error
    identifier, _, configuration = name.partition("@")
    try:
        return datasets.load_dataset(identifier, configuration or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{name} is no existing file, and its split {split!r} was not found as a data set "
            f"({cause(error)}): pass a file, or download the data set where there is a connection."
        ) from error


def _text_column(name: str, row: Row, wanted: str) -> str:
    present = ", ".join(map(str, row))
    if wanted:
        if wanted not in row:
            raise SourceError(f"{name} has no column {wanted!r}: take one of {present}.")
        return wanted
    strings = [c for c, value in row.items() if isinstance(value, str)]
    known = [c for c in _TEXT_COLUMNS if c in strings]
    others = [c for c in strings if c not in _LABEL_COLUMNS]
    if not known and len(others) != 1:
        raise SourceError(
            f"the text column of {name} is not clear: append #COLUMN, one of {present}."
        )
    return (known or others)[0]


def _labels(name: str, rows: Sequence[Row], source: Source) -> Tensor | None:
    """The label column as whole or real numbers; names go by the model's own label2id."""
    column = next((c for c in _LABEL_COLUMNS if c in rows[0]), None)
    if column is None:
        return None
    known = getattr(getattr(source.model, "config", None), "label2id", None) or {}
    try:
        values = [_number(row[column], known) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"{name}: a value in column {column!r} is neither a number nor one of the model's "
            f"labels ({', '.join(known) or 'it has none'}): write numbers, or rename the column."
        ) from error
    return torch.tensor(values)


def _number(value: Any, known: Mapping[str, int]) -> float:
    if isinstance(value, str):
        if value in known:
            return known[value]
        return float(value) if "." in value else int(value)
    return value if isinstance(value, float) else int(value)


def _call_factory(spec: str, split: str) -> Any:
    made = import_factory(spec)
    if not callable(made):
        return made
    return made(split=split) if "split" in inspect.signature(made).parameters else made()


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
