"""What a batch means: which part of it is forward arguments and which is labels.

Calibration data is an iterable of a tensor, a tuple of forward arguments, or a dict of them.
Training data is an iterable of a tensor or dict (a dict's `labels` are its labels), or of a
2-sequence (batch, labels) whose batch is a tensor, a tuple of forward arguments, or a dict.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrunecError
from ..user_code import user_batches

IGNORED = -100
"""The label that says: no label here (torch's `ignore_index`)."""

CALIBRATION_BATCHES = 64  # of training data, where it stands in for calibration data

Device = torch.device | str | None

_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class BatchError(PrunecError):
    """A batch of calibration or training data has none of the accepted forms."""


def forward_arguments(item: Any, device: Device = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of one calibration item, moved to `device`.

    A list means what a tuple does, because a DataLoader collates tuples into lists. A dict is
    passed on whole, `labels` included.

    Raises:
        BatchError: the item is no tensor, tuple or dict, or is empty.
    """
    if isinstance(item, Tensor):
        return (to_device(item, device),), {}
    if isinstance(item, Mapping):
        if not item or not all(isinstance(key, str) for key in item):
            raise BatchError(
                f"A dict batch with keys {list(item)} cannot be passed to forward:"
                " its keys must be the names of forward's arguments."
            )
        return (), {key: to_device(value, device) for key, value in item.items()}
    if isinstance(item, (tuple, list)) and item:
        return tuple(to_device(value, device) for value in item), {}
    raise BatchError(
        f"A batch must be a tensor, a tuple of forward arguments or a dict of them, not"
        f" {_form(item)}: convert it, with torch.as_tensor for numbers."
    )


def split_batch(
    batch: Any, device: Device = None, model: nn.Module | None = None
) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """The positional arguments, keyword arguments and labels of one training batch, on `device`.

    A sequence of one is an unlabelled batch, as `DataLoader(TensorDataset(x))` yields it. Several
    positional arguments without labels are `((a, b), None)`. With an encoder-decoder of
    transformers as `model`, a dict's labels also give the decoder's inputs, where it has none: its
    `forward` would make them of the labels, which it is not called with.

    Raises:
        BatchError: a sequence of another length than 1 or 2, labels that are no tensor, labels
            given twice, or forward arguments that `forward_arguments` refuses.
    """
    labels: Any = None
    if isinstance(batch, (tuple, list)):
        if len(batch) not in (1, 2):
            raise BatchError(
                f"A training batch of {len(batch)} items is ambiguous: give (batch, labels), with"
                " several forward arguments as a tuple or dict inside it, as in ((a, b), labels)."
            )
        batch, labels = batch if len(batch) == 2 else (batch[0], None)
    if isinstance(batch, Mapping) and "labels" in batch:
        if labels is not None:
            raise BatchError(
                "A training batch has labels both beside its dict and inside it: drop one of them."
            )
        labels = batch["labels"]
        batch = {key: value for key, value in batch.items() if key != "labels"}
    if labels is not None and not isinstance(labels, Tensor):
        raise BatchError(
            f"Labels must be a tensor or None, not {_form(labels)}: use torch.as_tensor, or"
            " ((a, b), None) for a batch of two forward arguments without labels."
        )
    args, kwargs = forward_arguments(batch, device)
    labels = to_device(labels, device)
    if labels is not None and model is not None and _are_tokens(labels, model, args, kwargs):
        kwargs["decoder_input_ids"] = decoder_inputs(model, labels)
    return args, kwargs, labels


def _are_tokens(
    labels: Tensor, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether transformers would make `decoder_input_ids` of the labels of these arguments."""
    if labels.dim() != 2 or labels.is_floating_point():
        return False
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    given = named_arguments(model, args, kwargs)
    takes = inspect.signature(model.forward).parameters
    decodes = "labels" in takes and "decoder_input_ids" in takes
    return decodes and not {"decoder_input_ids", "decoder_inputs_embeds"} & given.keys()


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """The start token, then all labels but the last, padding where there is none."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    # A composed configuration may keep these in its decoder's part.
    parts = (model.config, model.config.get_text_config(decoder=True))
    start, pad = (
        next((v for part in parts if (v := getattr(part, name, None)) is not None), None)
        for name in ("decoder_start_token_id", "pad_token_id")
    )
    pad = pad or 0
    shifted = labels.new_full(labels.shape, pad if start is None else start)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED, pad)


def unlabelled(
    batches: Iterable[Any] | None,
    model: nn.Module | None = None,
    call: Mapping[str, Any] | None = None,
    limit: int = CALIBRATION_BATCHES,
) -> list[Any]:
    """The first training batches without their labels, as calibration data, of a shuffling loader
    the same ones each time; none of an iterator, which can be read once only. `model`, `call`: the
    keyword arguments it is captured with, beside which a graph takes no others."""
    if batches is None or isinstance(batches, Iterator):
        return []
    decoder = model if "decoder_input_ids" in (call or {}) else None
    found: list[Any] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in itertools.islice(user_batches("train", batches), limit):
            args, kwargs, _ = split_batch(batch, model=decoder)
            found.append(args if args else kwargs)
    return found


def held_batches(batches: Iterable[Any] | None) -> list[Any]:
    """Calibration data in a list. Raises BatchError where an iterator or a loader has
    none (an empty list asks for none), UserCodeError for what it raises."""
    if batches is None:
        return []
    held = list(user_batches("calibration", batches))
    if not held and not isinstance(batches, (list, tuple)):
        raise BatchError(
            f"calibration, a {type(batches).__name__}, gave no batch (an iterator can be read only "
            "once): pass a list or a DataLoader that is not empty, or None."
        )
    return held


def named_arguments(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by the names that `model.forward` gives them.

    Positional ones beyond the named parameters (`*args`) are left out.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in _PLACED]
    return dict(zip(names, args, strict=False)) | kwargs


def to_device(value: Any, device: Device) -> Any:
    """`value` with every tensor in its tuples, lists and dicts on `device`; None moves nothing."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    return value


def _form(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
