"""Labels of rows as numbers: classes by their names, real values, a class for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SourceError
from .rows import Row


def known_labels(model: Any) -> Mapping[str, int]:
    """The classes by name that a transformers model's configuration holds."""
    return getattr(getattr(model, "config", None), "label2id", None) or {}


def row_labels(
    data: str, rows: Sequence[Row], column: str, model: Any, folder: bool = False
) -> list[Any]:
    """The label of each row: a whole or real number, or a list of classes for its tokens.

    Names go by the model's own label2id. Where those of a `folder` of classes are not among them
    they are numbered in the order of the alphabet, as far as the model has so many. Raises
    SourceError for a value that is neither.
    """
    known = known_labels(model)
    values = [row[column] for row in rows]
    names = sorted({v for v in values if isinstance(v, str)})
    if folder and names and not set(names) <= set(known):
        if known and len(known) != len(names):
            raise SourceError(
                f"{data} has the classes {', '.join(names[:8])}, and the model has {len(known)} "
                f"others ({', '.join(list(known)[:8])}): name the folders as those."
            )
        known = {name: i for i, name in enumerate(names)}
    try:
        return [_label(value, known) for value in values]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"{data}: a value in column {column!r} is neither a number nor one of the model's "
            f"labels ({', '.join(known) or 'it has none'}): write numbers, or rename the column."
        ) from error


def as_tensor(labels: Sequence[Any]) -> Tensor:
    """Numbers as int64, or float32 where one is real."""
    return torch.tensor(list(labels))


def _label(value: Any, known: Mapping[str, int]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_label(v, known) for v in value]
    if isinstance(value, str):
        if value in known:
            return known[value]
        return float(value) if "." in value else int(value)
    return value if isinstance(value, float) else int(value)
