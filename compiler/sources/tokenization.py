"""Rows of texts into samples and batches, by the model's tokenizer, for the inputs it is run on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SourceError
from .model import Source
from .rows import Row
from .tasks import Task

# Where neither the tokenizer nor the model sets a shorter limit.
LONGEST_TEXT = 512
IGNORED = -100
Sample = dict[str, Any]
Collate = Callable[[list[Sample]], dict[str, Tensor]]


def padding_tokenizer(source: Source) -> Any:
    """The model's tokenizer; a copy with a padding token lent to it where it has none, which the
    mask hides from the model. Raises SourceError without a tokenizer, or a token to pad with."""
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise SourceError(
            f"{source.name} has no tokenizer, so texts cannot be fed to it: pass "
            "package.module:factory that gives batches of tensors."
        )
    if tokenizer.pad_token is not None:
        return tokenizer
    lent = tokenizer.eos_token or tokenizer.unk_token
    if lent is None:
        raise SourceError(
            "the tokenizer has no padding, end or unknown token to pad with: set its pad_token."
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = lent
    return tokenizer


def encode(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    labels: Sequence[Any] | None,
    task: Task,
    tokenizer: Any,
    limit: int,
) -> list[Sample]:
    """A sample for each row: token ids and what goes with them, unpadded, at most `limit` long, and
    `labels`. Token classes follow words: of a word in several pieces the first has its class."""
    options: dict[str, Any] = {"truncation": True, "max_length": limit}
    if "tokens" in columns:
        words = [list(row[columns["tokens"]]) for row in rows]
        encoded = tokenizer(words, is_split_into_words=True, **options)
        if labels is not None:
            aligned = [_aligned(encoded.word_ids(i), own) for i, own in enumerate(labels)]
            labels = aligned
    else:
        texts = [str(row[columns["text"]]) for row in rows]
        if "pair" in columns:
            options["truncation"] = (
                "only_second" if task.name == "question-answering" else "longest_first"
            )
        seconds = [str(row[columns["pair"]]) for row in rows] if "pair" in columns else None
        encoded = tokenizer(texts, seconds, **options)
        if "target" in columns:
            targets = [str(row[columns["target"]]) for row in rows]
            labels = tokenizer(text_target=targets, truncation=True, max_length=limit)["input_ids"]
        elif task.name == "text2text-generation":
            labels = encoded["input_ids"]
    names = list(encoded)
    samples = [{name: encoded[name][i] for name in names} for i in range(len(rows))]
    for sample, label in zip(samples, labels if labels is not None else (), strict=False):
        sample["labels"] = label
    return samples


def collator(task: Task, tokenizer: Any, source: Source, width: int | None) -> Collate:
    """Pads samples to the longest of a batch, or all to `width`, and gives what the model is run on
    and `labels`. Masked language models read texts with 15 % of their tokens hidden."""
    import transformers

    options: dict[str, Any] = {"padding": "max_length", "max_length": width} if width else {}
    if task.name == "fill-mask":
        made: Any = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True)
    elif task.name == "text-generation":
        made = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    elif task.name == "token-classification":
        made = transformers.DataCollatorForTokenClassification(tokenizer, **options)
    elif task.name == "text2text-generation":
        made = transformers.DataCollatorForSeq2Seq(tokenizer, source.model, **options)  # type: ignore[arg-type]
    else:
        made = transformers.DataCollatorWithPadding(tokenizer, **options)
    accepted = accepted_inputs(source)

    def collate(samples: list[Sample]) -> dict[str, Tensor]:
        if width and task.name in ("fill-mask", "text-generation"):
            padded = tokenizer.pad(samples, padding="max_length", max_length=width)
            samples = [{k: padded[k][i] for k in padded} for i in range(len(samples))]
        batch = dict(made([dict(sample) for sample in samples]))
        if "decoder_input_ids" in accepted and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = _shifted(batch["input_ids"], source.model)
        if task.name == "text2text-generation" and "labels" not in samples[0]:
            batch.pop("labels", None)
        return {k: v for k, v in batch.items() if k in accepted or k == "labels"}

    return collate


def take_segments(source: Source, tokenizer: Any) -> None:
    """Where the tokenizer tells the two texts of a pair apart and the model reads that, let the
    example call have it too: a captured graph takes what that has."""
    name = "token_type_ids"
    ids = source.kwargs.get("input_ids")
    takes = name in inspect.signature(source.model.forward).parameters
    if takes and name in tokenizer.model_input_names and isinstance(ids, Tensor):
        if name not in source.kwargs:
            segments = torch.zeros_like(ids)
            segments[..., ids.shape[-1] // 2 :] = 1
            source.kwargs[name] = segments


def accepted_inputs(source: Source) -> set[str]:
    """The names of the tensors in the example call: a captured graph takes these and no others."""
    parameters = list(inspect.signature(source.model.forward).parameters)
    by_position = parameters[: len(source.args)]
    return {*by_position, *(k for k, v in source.kwargs.items() if isinstance(v, Tensor))}


def token_limit(tokenizer: Any, model: Any, asked: int | None) -> int:
    """Tokens a text is cut to. Tokenizers without a limit of their own claim an enormous one."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    # RoBERTa and its kin number positions from 2, and their tokenizers say so.
    limits = [tokenizer.model_max_length, positions, asked or LONGEST_TEXT]
    return int(min(limit for limit in limits if isinstance(limit, (int, float)) and limit > 0))


def _aligned(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """A label for each piece: its word's for the first one, none for others."""
    found, before = [], None
    for word in words:
        found.append(IGNORED if word is None or word == before else int(labels[word]))
        before = word
    return found


def _shifted(ids: Tensor, model: Any) -> Tensor:
    """What a decoder reads to predict `ids`: the start token, then all but the last."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "pad_token_id", None) or 0
    shifted = ids.new_full(ids.shape, start)
    shifted[:, 1:] = ids[:, :-1]
    return shifted
