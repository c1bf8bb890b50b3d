"""Texts into batches of tensors, by the model's tokenizer and for the inputs it is run on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import SourceError
from .model import Source

# Where neither the tokenizer nor the model sets a shorter limit.
LONGEST_TEXT = 512


def tokenized_batches(
    texts: Sequence[str], labels: Tensor | None, source: Source, batch_size: int
) -> list[dict[str, Tensor]]:
    """Tokenize in order. Each batch is padded to its longest text and holds only what the model
    is run on (`input_ids`, `attention_mask`, ...), int64 (batch, length), and its `labels`.

    Raises SourceError when the model has no tokenizer.
    """
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise SourceError(
            f"{source.name} has no tokenizer, so texts cannot be fed to it: pass "
            "package.module:factory that gives batches of tensors."
        )
    accepted = _accepted(source)
    limit = _limit(tokenizer, source.model)
    batches: list[dict[str, Tensor]] = []
    with _padding(tokenizer):
        for start in range(0, len(texts), batch_size):
            encoded = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            batch = {name: value for name, value in encoded.items() if name in accepted}
            if "decoder_input_ids" in accepted and "input_ids" in batch:
                batch["decoder_input_ids"] = _shifted(batch["input_ids"], source.model)
            if labels is not None:
                batch["labels"] = labels[start : start + batch_size]
            batches.append(batch)
    return batches


def _accepted(source: Source) -> set[str]:
    """The names of the tensors in the example call: a captured graph takes these and no others."""
    parameters = list(inspect.signature(source.model.forward).parameters)
    by_position = parameters[: len(source.args)]
    return {*by_position, *(k for k, v in source.kwargs.items() if isinstance(v, Tensor))}


def _limit(tokenizer: Any, model: Any) -> int:
    """Tokens a text is cut to. Tokenizers without a limit of their own claim an enormous one."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    # RoBERTa and its kin number positions from 2, and their tokenizers say so.
    limits = [tokenizer.model_max_length, LONGEST_TEXT, positions]
    return int(min(limit for limit in limits if isinstance(limit, (int, float)) and limit > 0))


@contextmanager
def _padding(tokenizer: Any) -> Iterator[None]:
    """Lend a padding token to a tokenizer that has none; the mask hides it from the model."""
    if tokenizer.pad_token is not None:
        yield
        return
    lent = tokenizer.eos_token or tokenizer.unk_token
    if lent is None:
        raise SourceError(
            "the tokenizer has no padding, end or unknown token to pad with: set its pad_token."
        )
    tokenizer.pad_token = lent
    try:
        yield
    finally:
        tokenizer.pad_token = None


def _shifted(ids: Tensor, model: Any) -> Tensor:
    """What a decoder reads to predict `ids`: the start token, then all but the last."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "pad_token_id", None) or 0
    first = torch.full_like(ids[:, :1], start)
    return torch.cat([first, ids[:, :-1]], dim=1)
