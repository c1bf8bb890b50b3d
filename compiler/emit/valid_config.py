"""Which of the sizes that a configuration would state its own class accepts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_HEADS = ("head", "n_kv")
_PAIRS = 6  # of keys, up to which two are left out together


def accepted(config: Any, values: Mapping[str, Any], model: nn.Module) -> tuple[set[str], str]:
    """The keys, dotted below `config`, whose new values the class accepts together, as many as
    there are, and why the others are not; the configuration itself is not changed.

    It is asked three ways: `validate`, made anew from its own dictionary, and where it is the
    model's own, the model made from it on the meta device.
    """
    if refusal(config, {}, model):  # its own sizes are refused as well: nothing can be told
        return set(values), ""
    why = ""
    for left_out in _left_out(list(values)):
        taken = {key: value for key, value in values.items() if key not in left_out}
        said = refusal(config, taken, model)
        if not said:
            return set(taken), why
        why = why or said
    return set(), why


def _left_out(keys: list[str]) -> Iterator[set[str]]:
    """What to do without, the least first: one key, the counts and widths of heads, two keys,
    everything."""
    yield set()
    yield {k for k in keys if any(word in k for word in _HEADS)}
    yield from ({k} for k in keys)
    if len(keys) <= _PAIRS:
        yield from (set(pair) for pair in itertools.combinations(keys, 2))
    yield set(keys)


def refusal(config: Any, values: Mapping[str, Any], model: nn.Module) -> str:
    """What the class says against these values, in one line; '' where it takes them."""
    try:
        changed = copy.deepcopy(config)
        for key, value in values.items():
            holder, _, leaf = key.rpartition(".")
            owner = changed
            for part in filter(None, holder.split(".")):
                owner = getattr(owner, part)
            setattr(owner, leaf, value)
        for part in _parts(changed):
            if callable(getattr(part, "validate", None)):
                part.validate()
        again = type(changed).from_dict(changed.to_dict())
        if getattr(model, "config", None) is config and getattr(model, "config_class", None):
            with torch.device("meta"):
                type(model)(again)
    except Exception as error:  # whatever a class of its own raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[-1] if lines else type(error).__name__)[:200]
    return ""


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from _parts(value)
