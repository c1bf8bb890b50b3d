"""Rows of texts into samples and batches, by the model's tokenizer, for the inputs it is run on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..capture.batches import IGNORED, decoder_inputs
from ..errors import SourceError
from .model import Source
from .rows import Entries
from .tasks import TOKEN_CLASSES, Task

# Where neither the tokenizer nor the model sets a shorter limit.
LONGEST_TEXT = 512
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
    entries: Entries,
    columns: Mapping[str, str],
    labels: Sequence[Any] | None,
    task: Task,
    tokenizer: Any,
    limit: int,
) -> list[Sample]:
    """A sample for each row: token ids and what goes with them, unpadded, at most `limit` long, and
    `labels`. Token classes follow words: of a word in several pieces the first has its class.
    Raises SourceError, naming the row, for words that are not as many as their labels, and for a
    question that leaves no room for its text."""
    options: dict[str, Any] = {"truncation": True, "max_length": limit}
    if "tokens" in columns:
        words = list(map(list, entries.values(columns["tokens"])))
        _require_as_many(entries, words, labels)
        encoded = tokenizer(words, is_split_into_words=True, **options)
        if labels is not None:
            aligned = [_aligned(encoded.word_ids(i), own) for i, own in enumerate(labels)]
            labels = aligned
    else:
        texts = _texts(entries, columns["text"])
        if "pair" in columns:
            options["truncation"] = (
                "only_second" if task.name == "question-answering" else "longest_first"
            )
        seconds = _texts(entries, columns["pair"]) if "pair" in columns else None
        if task.name == "question-answering" and seconds is not None:
            _require_room(entries, texts, tokenizer, limit)
        encoded = tokenizer(texts, seconds, **options)
        if "target" in columns:
            targets = _texts(entries, columns["target"])
            labels = tokenizer(text_target=targets, truncation=True, max_length=limit)["input_ids"]
        elif task.name == "text2text-generation":
            labels = encoded["input_ids"]
    names = list(encoded)
    samples = [{name: encoded[name][i] for name in names} for i in range(len(entries.rows))]
    for sample, label in zip(samples, labels if labels is not None else (), strict=False):
        sample["labels"] = label
    return samples


def _texts(entries: Entries, column: str) -> list[str]:
    """Those of a column; numbers as they are written."""
    values = entries.values(column)
    for index, value in enumerate(values):
        if not isinstance(value, (str, int, float)):
            raise SourceError(
                f"{entries.where(index)} has {str(value)[:80]!r} under {column!r}, which is no "
                "text: write a column of plain text, or name another one."
            )
    return list(map(str, values))


def collator(task: Task, tokenizer: Any, source: Source, width: int | None) -> Collate:
    """Pads samples to the longest of a batch, or all to `width`, and gives what the model is run on
    and `labels`. Masked language models read texts with 15 % of their tokens hidden."""
    import transformers

    options: dict[str, Any] = {"padding": "max_length", "max_length": width} if width else {}
    if task.name == "fill-mask":
        made: Any = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=True)
    elif task.name == "text-generation":
        made = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    elif task.name == TOKEN_CLASSES:
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
            targets = batch.get("labels") if task.name == "text2text-generation" else None
            targets = batch["input_ids"] if targets is None else targets
            batch["decoder_input_ids"] = decoder_inputs(source.model, targets)
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


def token_limit(
    tokenizer: Any, model: Any, max_length: int | None = None, pad_to: int | None = None
) -> int:
    """Tokens a text is cut to. Raises SourceError where `pad_to` is more than the model takes."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int):
        positions -= _first_position(model)
    # Tokenizers without a limit of their own claim an enormous one.
    limits = [v for v in (tokenizer.model_max_length, positions) if isinstance(v, (int, float))]
    most = int(min(v for v in (*limits, float(2**62)) if v > 0))
    if pad_to is not None and pad_to > most:
        raise SourceError(
            f"texts are to be padded to {pad_to} tokens (--pad-to), and the model and its "
            f"tokenizer take at most {most}: ask for {most} or fewer."
        )
    asked = [v for v in (max_length, pad_to) if v is not None] or [LONGEST_TEXT]
    return min(most, *asked)


def _first_position(model: Any) -> int:
    """The number of a text's first position: RoBERTa and its kin keep those up to the padding
    token's for padding, and so have fewer than their configuration says."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return padding + 1
    return 0


def require_words(entries: Entries, column: str) -> None:
    """Raises SourceError, naming the row, for what is no list of words."""
    for index, words in enumerate(entries.values(column)):
        if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) for w in words):
            raise SourceError(
                f"{entries.where(index)} has {str(words)[:80]!r} under {column!r}, where a list of "
                'words is read: write ["one", "two"], in .jsonl or .json.'
            )


def _require_as_many(
    entries: Entries, words: Sequence[list[str]], labels: Sequence[Any] | None
) -> None:
    for index, own in enumerate(labels or ()):
        if not isinstance(own, (list, tuple)) or len(own) != len(words[index]):
            have = f"{len(own)} labels" if isinstance(own, (list, tuple)) else "one label"
            raise SourceError(
                f"{entries.where(index)} has {have} for {len(words[index])} words: write one for "
                "each."
            )


def _require_room(entries: Entries, questions: Sequence[str], tokenizer: Any, limit: int) -> None:
    """Only the text behind a question is cut, and tokenizers fail where that does not suffice."""
    room = limit - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = map(len, tokenizer(list(questions), add_special_tokens=False)["input_ids"])
    long = next(((i, n) for i, n in enumerate(lengths) if n >= room), None)
    if long is not None:
        raise SourceError(
            f"the question of {entries.where(long[0])} has {long[1]} tokens, and with its text at "
            f"most {limit} are read (--max-length, or what the model takes): raise that, or leave "
            "the entry out."
        )


def _aligned(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """A label for each piece: its word's for the first one, none for others."""
    found, before = [], None
    for word in words:
        found.append(IGNORED if word is None or word == before else int(labels[word]))
        before = word
    return found
