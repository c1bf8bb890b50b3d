"""Rows of named columns from what DATA names: files, directories, `datasets` ids."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cause import cause
from ..errors import SourceError
from .image_folder import classes_of, has_images, image_rows

Row = Mapping[str, Any]
_ENCODING = "utf-8-sig"  # UTF-8, with the mark in front that some editors write, or without
TRAIN = "train"  # what data without splits is taken for


@dataclasses.dataclass(frozen=True)
class Read:
    """Rows; the folder that paths in them start from; of images in folders, the classes."""

    rows: Sequence[Row]
    base: Path = Path()
    classes: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Entries:
    """The rows that are taken of `data`, as the user named it, and the numbers they have there."""

    data: str
    rows: Sequence[Row]
    numbers: Sequence[int]

    def columns(self) -> list[str]:
        """The names of the columns, of whatever row has them."""
        names = getattr(self.rows, "column_names", None)
        found = names if names is not None else (name for row in self.rows for name in row)
        return list(dict.fromkeys(found))

    def values(self, column: str) -> Sequence[Any]:
        """Those of a column, None where a row has none."""
        if hasattr(self.rows, "column_names"):  # of `datasets`: other columns (images) stay unread
            return self.rows[column]  # type: ignore[call-overload]
        return [row.get(column) for row in self.rows]

    def where(self, index: int) -> str:
        """How a message names a row."""
        return f"entry {self.numbers[index]} of {self.data}"


_SAVED = "state.json", "dataset_dict.json"  # what datasets writes by save_to_disk


def read_rows(name: str, split: str) -> Read:
    """The rows of a file, a directory or the id of a data set.

    A directory holds a data set saved by `datasets`, files named as the split (`train.csv`), or
    images by class (`CLASS/image.png`, or the same below a folder named as the split). What has no
    splits is all "train". Raises SourceError for what is absent, empty or cannot be read, and for
    another split that is not there.
    """
    path = Path(name)
    rows: Any
    if path.is_file():
        if split not in (TRAIN, path.stem):
            raise _no_split(name, split, "it is one file: name another by --eval-data")
        rows = Read(_read_file(path), path.parent)
    elif path.is_dir():
        rows = _read_directory(path, split)
    elif path.suffix in READERS:
        raise SourceError(f"{name} does not exist: pass a {', '.join(READERS)} file.")
    else:
        rows = Read(_read_hub(name, split))
    if not len(rows.rows):
        raise SourceError(f"{name} holds no samples: pass a file or split that is not empty.")
    return rows


def drawn(size: int, count: int | None, seed: int) -> Sequence[int]:
    """At most `count` of so many indices in their order, at random, since data are often sorted."""
    if count is None or count >= size:
        return range(size)
    return sorted(random.Random(seed).sample(range(size), count))


def some_of(data: str, rows: Sequence[Row], count: int | None, seed: int) -> Entries:
    """At most `count` rows, as `drawn`."""
    chosen = drawn(len(rows), count, seed)
    if len(chosen) < len(rows):
        select = getattr(rows, "select", None)
        rows = select(chosen) if select is not None else [rows[i] for i in chosen]
    return Entries(data, rows, [i + 1 for i in chosen])


def _read_text(path: Path) -> Sequence[Row]:
    lines = path.read_text(encoding=_ENCODING).splitlines()
    return [{"text": stripped} for line in lines if (stripped := line.strip())]


def _read_json_lines(path: Path) -> Sequence[Row]:
    rows: list[Row] = []
    with path.open(encoding=_ENCODING) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    item = json.loads(line)
                except json.JSONDecodeError as error:
                    raise SourceError(
                        f"{path}, line {number}, is no JSON ({error.msg} at column {error.colno}): "
                        "write one object a line."
                    ) from error
                rows.append(_object(path, len(rows) + 1, item))
    return rows


def _read_json(path: Path) -> Sequence[Row]:
    found = json.loads(path.read_text(encoding=_ENCODING))
    if not isinstance(found, list):
        raise SourceError(
            f"{path} is not a JSON list of objects: write one object a line (.jsonl)."
        )
    return [_object(path, number, item) for number, item in enumerate(found, 1)]


def _object(path: Path, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise SourceError(f'{path}: entry {number} is no JSON object: write {{"text": "..."}}.')
    return item


def _read_table(path: Path) -> Sequence[Row]:
    rows: list[Row] = []
    with path.open(encoding=_ENCODING, newline="") as lines:
        tabs = path.suffix.lower() == ".tsv"
        reader = csv.DictReader(lines, delimiter="\t" if tabs else ",")
        (header,) = names if len(names := reader.fieldnames or ()) == 1 else ("",)
        if any(mark in header for mark in ",;\t"):
            wanted = "tabs" if tabs else "commas, or by tabs in a .tsv"
            raise SourceError(f"{path} has one column, {header!r}: separate columns by {wanted}.")
        for row in reader:
            if any(row.pop(None, ())):  # type: ignore[call-overload]  # fields beyond the header's
                raise SourceError(
                    f"{path}, line {reader.line_num}, has more fields than the first line names: "
                    "put texts that hold a separator in quotes."
                )
            rows.append(row)
    return rows


def _read_parquet(path: Path) -> Any:
    datasets = _library(f"{path} is read by a package that is missing")
    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # pyarrow raises many kinds
        raise SourceError(f"{path} is no parquet file ({cause(error)}): write it again.") from error


def _library(why: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            f"{why}: datasets is not installed: pip install 'prunec[data]'."
        ) from error
    return datasets


READERS = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}


def _read_file(path: Path) -> Any:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(
            f"{path} has no known suffix: name it {', '.join(READERS)}, by what it holds."
        )
    try:
        return reader(path)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not {path.suffix} in UTF-8 ({error}): convert it.") from error


def _read_directory(path: Path, split: str) -> Read:
    if any((path / name).is_file() for name in _SAVED):
        return Read(_read_saved(path, split), path)
    files = sorted(p for p in path.iterdir() if p.suffix in READERS)
    named = [p for p in files if p.stem == split or p.stem.startswith(f"{split}-")]
    if len(named) > 1 and len({p.suffix for p in named}) == 1:
        return Read([row for p in named for row in _read_file(p)], path)
    if len(named) == 1:
        return Read(_read_file(named[0]), path)
    if has_images(path / split):
        return _images(path / split, [p for p in path.iterdir() if has_images(p)])
    if split == TRAIN and has_images(path):
        return _images(path, [path])
    if split == TRAIN and len(files) == 1:
        return Read(_read_file(files[0]), path)
    present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise SourceError(
        f"{path} holds {present}, and no split {split!r}: pass images in a folder for each class, "
        f"a file named {split}.csv (or {', '.join(READERS)}), or the file itself."
    )


def _images(folder: Path, splits: Sequence[Path]) -> Read:
    """The images of a folder, with the classes that there are in any of the splits."""
    rows, classes = image_rows(folder), classes_of(splits)
    if classes is None:
        rows = [{"image": row["image"]} for row in rows]
    return Read(rows, classes=classes)


def _read_saved(path: Path, split: str) -> Any:
    datasets = _library(f"{path} was saved by a package that is missing")
    found = datasets.load_from_disk(str(path))
    return of_split(str(path), found, split)


def _read_hub(name: str, split: str) -> Any:
    datasets = _library(f"{name} is no existing file, and the id of a data set needs a package")
    identifier, _, configuration = name.partition("@")
    try:
        return datasets.load_dataset(identifier, configuration or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{name} is no existing file, and its split {split!r} was not found as a data set "
            f"({cause(error)}): pass a file, or download the data set where there is a connection."
        ) from error


def _no_split(name: str, split: str, why: str) -> SourceError:
    return SourceError(f"{name} has no split {split!r}: {why}.")


def of_split(name: str, found: Any, split: str) -> Any:
    """The split of a DatasetDict; what is no mapping has none but "train". Raises SourceError."""
    if not isinstance(found, Mapping):
        if split != TRAIN:
            raise _no_split(name, split, "it was saved as one: name another by --eval-data")
        return found
    if split not in found:
        raise SourceError(f"{name} has no split {split!r}: it has {', '.join(found)}.")
    return found[split]
