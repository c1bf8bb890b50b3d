"""Fake tensors without the tracebacks that torch writes of what its caller catches."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_meta() -> Iterator[None]:
    """Within the block torch writes no "failed while attempting to run meta": the exception comes
    all the same, and whoever asks for shapes handles it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
