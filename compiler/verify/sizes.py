"""The same call at other sizes than the example's, as far as capture left them open."""

from __future__ import annotations

from typing import Any

from ..capture.batch import Arguments, batch_size, resize_batch
from ..ir.program import Program


def other_size(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The call at another batch size; as it is where the program has but one."""
    if not program.batched:
        return args, kwargs
    return resize_batch(args, kwargs, 3 if batch_size(args, kwargs) == 2 else 2)
