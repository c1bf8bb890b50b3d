"""Which task a model is for, and which columns of the data it reads for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import SourceError
from .model import Source

TOKEN_CLASSES = "token-classification"
_TEXT = ("text", "sentence", "content", "document", "review", "question", "body", "prompt")
_FIRST = ("sentence1", "premise", "question1", "question", "text1", "query")
_SECOND = ("sentence2", "hypothesis", "question2", "context", "text2", "passage")
_LABEL = ("labels", "label")
_TOKEN_LABEL = ("labels", "ner_tags", "tags", "pos_tags", "label")
_TARGET = ("target", "summary", "highlights", "answer", "response", "output", "translation")
_IMAGE = ("image", "img", "pixel_values", "file", "path")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is read for a task: `needs` and `takes` name roles of columns, the latter where there
    are such. `suffixes`: of classes of transformers that are for it."""

    name: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


TASKS = {
    task.name: task
    for task in (
        Task("text-classification", ("text",), ("pair", "label"), ("ForSequenceClassification",)),
        Task(TOKEN_CLASSES, ("tokens",), ("label",), ("ForTokenClassification",)),
        Task("question-answering", ("text", "pair"), (), ("ForQuestionAnswering",)),
        Task("fill-mask", ("text",), (), ("ForMaskedLM", "ForPreTraining")),
        Task("text-generation", ("text",), (), ("ForCausalLM", "LMHeadModel")),
        Task("text2text-generation", ("text",), ("target",), ("ForConditionalGeneration",)),
        Task("feature-extraction", ("text",), ("label",)),
        Task(
            "image-classification",
            ("image",),
            ("label",),
            ("ForImageClassification", "ForImageClassificationWithTeacher"),
        ),
    )
}
ROLES: dict[str, tuple[str, ...]] = {
    "text": _TEXT,
    "pair": _SECOND,
    "tokens": ("tokens", "words"),
    "label": _LABEL,
    "target": _TARGET,
    "image": _IMAGE,
}


def infer_task(source: Source) -> Task:
    """By the class of the model, where transformers names it; else by whether it is run on images
    or on anything else."""
    name = type(source.model).__name__
    for task in TASKS.values():
        if name.endswith(task.suffixes):
            return task
    values = [v for v in (*source.args, *source.kwargs.values()) if isinstance(v, Tensor)]
    images = any(v.dim() == 4 and v.is_floating_point() for v in values)
    return TASKS["image-classification" if images else "feature-extraction"]


def named_task(name: str | None, source: Source) -> Task:
    """The task of a name, or the inferred one. Raises SourceError for an unknown name."""
    if name is None:
        return infer_task(source)
    if name not in TASKS:
        raise SourceError(f"there is no task {name!r}: name one of {', '.join(TASKS)}.")
    return TASKS[name]


def find_columns(
    data: str, task: Task, present: Sequence[str], named: Mapping[str, str], strings: Sequence[str]
) -> dict[str, str]:
    """The column of each role of a task: as `named`, else by usual names; for a text also the only
    column of strings. Raises SourceError, naming what there is, for a column that does not exist
    and for a role that none is found for."""
    shown = ", ".join(map(str, present))
    for role, column in named.items():
        if role not in ROLES:
            raise SourceError(f"a column is named for one of {', '.join(ROLES)}, not {role!r}.")
        if role not in (*task.needs, *task.takes):
            roles = " and ".join((*task.needs, *task.takes))
            raise SourceError(
                f"--column {role}={column} is not read for the task {task.name}, which reads "
                f"{roles}: name one of these, or another --task."
            )
        if column not in present:
            raise SourceError(f"{data} has no column {column!r}: take one of {shown}.")
    found = dict(named)
    for role in (*task.needs, *task.takes):
        if role not in found:
            column = _usual(role, task, present, strings, found)
            if column is not None:
                found[role] = column
    for role in task.needs:
        if role not in found:
            raise SourceError(
                f"the {role} column of {data} is not clear (task {task.name}): append #COLUMN, or "
                f"give --column {role}=COLUMN; one of {shown}."
            )
    return {role: found[role] for role in (*task.needs, *task.takes) if role in found}


def _usual(
    role: str, task: Task, present: Sequence[str], strings: Sequence[str], found: Mapping[str, str]
) -> str | None:
    names = ROLES[role]
    if role == "label" and task.name == TOKEN_CLASSES:
        names = _TOKEN_LABEL
    if role == "text" and "pair" in (*task.needs, *task.takes):
        second = next((c for c in _SECOND if c in present), None)
        if second is not None:
            names = (_FIRST[_SECOND.index(second)], *_FIRST, *_TEXT)
    if role == "pair" and found.get("text") not in (*_FIRST, None):
        return None  # a text that stands alone has no second one
    usual = next((c for c in names if c in present and c not in found.values()), None)
    if usual is None and role == "text":
        others = [c for c in strings if c not in _LABEL and c not in found.values()]
        usual = others[0] if len(others) == 1 else None
    return usual
