"""Labels of rows as numbers: classes by their names, real values, a class for each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..capture.batches import IGNORED
from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call
from ..capture.untouched import untouched
from ..errors import SourceError
from .model import Source
from .rows import Entries
from .tasks import TOKEN_CLASSES, Task


def known_labels(model: Any) -> Mapping[str, int]:
    """The classes by name that a transformers model's configuration holds."""
    return getattr(getattr(model, "config", None), "label2id", None) or {}


def row_labels(
    entries: Entries,
    column: str,
    task: Task,
    source: Source,
    classes: Sequence[str] | None = None,
) -> list[Any]:
    """The label of each row: a whole number, a list of classes for its tokens, real numbers for
    all where one is not whole or the model gives one value, or a list of real numbers where a row
    has several labels (0 or 1 each, where the model's configuration says multi-label).

    Names go by the model's own label2id, those that a data set has for its numbers too. Folders of
    images name `classes` (all of them, also those with no image among the rows): where the model
    does not know them they are numbered in the order of the alphabet, if it has as many. Raises
    SourceError, naming the row, for a value that is neither, one that is none of the model's
    classes, and for another number of classes.
    """
    known = known_labels(source.model)
    if classes is not None and not set(classes) <= set(known):
        own = len(known) or _outputs(source)
        if own != len(classes):
            raise SourceError(
                f"{entries.data} has {len(classes)} classes ({', '.join(classes[:8])}), and the "
                f"model has {own}{' (' + ', '.join(list(known)[:8]) + ')' if known else ''}: name "
                "the folders as the model's classes, or put all images into one folder to go "
                "without labels."
            )
        known = {name: i for i, name in enumerate(classes)}
    found: list[Any] = []
    order = _renumbered(entries, column, known)
    for index, value in enumerate(entries.values(column)):
        try:
            found.append(_label(value, known, order))
        except (ValueError, TypeError, KeyError) as error:
            raise SourceError(
                f"{entries.where(index)} has {str(value)[:80]!r} under {column!r}, neither a "
                f"number nor one of the model's labels ({', '.join(known) or 'it has none'}): "
                "write numbers, or rename the column."
            ) from error
    config = getattr(source.model, "config", None)
    one = getattr(config, "num_labels", None) == 1
    if task.name == TOKEN_CLASSES:
        _require_classes(entries, column, found, task, source)
        return found
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    if several or any(isinstance(value, list) for value in found):
        return _vectors(entries, column, found, several, config)
    if one or not all(float(value).is_integer() for value in found):
        return [float(value) for value in found]
    found = [int(value) for value in found]
    _require_classes(entries, column, found, task, source)
    return found


def _renumbered(entries: Entries, column: str, known: Mapping[str, int]) -> dict[int, int]:
    """By a data set's number of a class the model's, where both name it; empty where they do not
    name the same classes."""
    feature = (getattr(entries.rows, "features", None) or {}).get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None) or ()
    own = {name.casefold(): number for name, number in known.items()}
    if not all(name.casefold() in own for name in names):
        return {}
    return {number: own[name.casefold()] for number, name in enumerate(names)}


def _vectors(
    entries: Entries, column: str, found: Sequence[Any], several: bool, config: Any
) -> list[list[float]]:
    """Lists of real numbers: of whole ones a loss would take the entries for classes."""
    wanted = getattr(config, "num_labels", None) if several else None
    for index, value in enumerate(found):
        if not isinstance(value, list):
            raise SourceError(
                f"{entries.where(index)} has one label under {column!r}, and the model or another "
                "entry has several: write a list of numbers, one for each."
            )
        wanted = len(value) if wanted is None else wanted
        if len(value) != wanted:
            raise SourceError(
                f"{entries.where(index)} has {len(value)} labels under {column!r}, and the model "
                f"or another entry has {wanted}: write a number for each."
            )
        wrong = [v for v in value if several and not 0 <= v <= 1]
        if wrong:
            raise SourceError(
                f"{entries.where(index)} has {wrong[0]} under {column!r}, where the model reads 0 "
                "or 1 for each of its labels: write these."
            )
    return [[float(v) for v in value] for value in found]


def _require_classes(
    entries: Entries, column: str, labels: Sequence[Any], task: Task, source: Source
) -> None:
    classes = _classes(task, source)
    if classes is None:
        return
    for index, label in enumerate(labels):
        for own in label if isinstance(label, list) else (label,):
            if own != IGNORED and not 0 <= own < classes:
                raise SourceError(
                    f"{entries.where(index)} has the label {own} under {column!r}, and the model "
                    f"has the classes 0 to {classes - 1}: correct it, write {IGNORED} where there "
                    "is no label, or rename the column to go without labels."
                )


def _classes(task: Task, source: Source) -> int | None:
    """How many the model tells apart; None for one that does not, or where it is not known."""
    if task.suffixes and type(source.model).__name__.endswith(task.suffixes):
        return getattr(getattr(source.model, "config", None), "num_labels", None)
    if task.name != "image-classification" or not (source.args or source.kwargs):
        return None
    width = _outputs(source, dimensions=2)
    return width if width > 1 else None


def _outputs(source: Source, dimensions: int | None = None) -> int:
    """The entries along the last axis of the model's first output, for its example arguments; 0
    where it has another number of dimensions than asked, or there is none."""
    args, kwargs = copied_call(source.args, source.kwargs)
    with torch.no_grad(), untouched(source.model), eval_mode(source.model):
        leaves = pytree.tree_leaves(source.model(*args, **kwargs))
    found = next((x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()), None)
    if found is None or found.dim() != (dimensions or found.dim()) or not found.dim():
        return 0
    return found.shape[-1]


def as_tensor(labels: Sequence[Any]) -> Tensor:
    """Numbers as int64, or float32 where one is real."""
    return torch.tensor(list(labels))


def _label(value: Any, known: Mapping[str, int], order: Mapping[int, int]) -> Any:
    """A number, or a list of them. Raises ValueError, TypeError or KeyError for anything else."""
    if isinstance(value, (list, tuple)):
        return [_label(v, known, order) for v in value]
    if isinstance(value, int) and value in order:
        return order[value]
    if isinstance(value, str):
        if value in known:
            return known[value]
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("no finite number")
    return value if isinstance(value, float) else int(value)
