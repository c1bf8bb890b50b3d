"""A hash of tensors and plain values, by which files that are kept are told from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def content_digest(*values: Any) -> str:
    """32 hex digits of the content: of tensors their dtype, shape and entries (on the meta device
    there are none), through tuples, lists and mappings; of anything else its `repr`."""
    found = hashlib.sha256()
    for value in values:
        _update(found, value)
    return found.hexdigest()[:32]


def _update(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{list(value.shape)}".encode())
        if value.numel() and not value.is_meta:
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            found.update(f"{key!r}:".encode())
            _update(found, item)
    elif isinstance(value, (tuple, list)):
        found.update(f"{len(value)}[".encode())
        for item in value:
            _update(found, item)
    else:
        found.update(f"{value!r},".encode())
