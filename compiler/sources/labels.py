"""Labels of rows as numbers: classes by their names, real values, a class for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..capture.eval_mode import eval_mode
from ..errors import SourceError
from .model import Source
from .rows import Row


def known_labels(model: Any) -> Mapping[str, int]:
    """The classes by name that a transformers model's configuration holds."""
    return getattr(getattr(model, "config", None), "label2id", None) or {}


def row_labels(
    data: str,
    rows: Sequence[Row],
    column: str,
    source: Source,
    classes: Sequence[str] | None = None,
) -> list[Any]:
    """The label of each row: a whole number, a list of classes for its tokens, or real numbers for
    all where one is not whole or the model gives one value.

    Names go by the model's own label2id. Folders of images name `classes` (all of them, also those
    with no image among the rows): where the model does not know them they are numbered in the order
    of the alphabet, if it has as many. Raises SourceError for a value that is neither, and for
    another number of classes.
    """
    known = known_labels(source.model)
    if classes is not None and not set(classes) <= set(known):
        own = len(known) or _outputs(source)
        if own != len(classes):
            raise SourceError(
                f"{data} has {len(classes)} classes ({', '.join(classes[:8])}), and the model has "
                f"{own}{' (' + ', '.join(list(known)[:8]) + ')' if known else ''}: name the folders"
                " as the model's classes, or put all images into one folder to go without labels."
            )
        known = {name: i for i, name in enumerate(classes)}
    values = [row[column] for row in rows]
    try:
        found = [_label(value, known) for value in values]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"{data}: a value in column {column!r} is neither a number nor one of the model's "
            f"labels ({', '.join(known) or 'it has none'}): write numbers, or rename the column."
        ) from error
    single = [value for value in found if not isinstance(value, list)]
    whole = all(float(value).is_integer() for value in single)
    one = getattr(getattr(source.model, "config", None), "num_labels", None) == 1
    if len(single) < len(found):
        return found
    kind: Any = int if whole and not one else float
    return [kind(value) for value in found]


def _outputs(source: Source) -> int:
    """The entries along the last axis of the model's first output, for its example arguments."""
    with torch.no_grad(), eval_mode(source.model):
        leaves = pytree.tree_leaves(source.model(*source.args, **source.kwargs))
    found = next((x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()), None)
    return found.shape[-1] if found is not None and found.dim() else 0


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
