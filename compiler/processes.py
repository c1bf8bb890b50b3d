"""Several processes that compile alike: what is measured is measured by the first one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def on_first(made: Callable[[], T], device: torch.device) -> T:
    """What `made` gives in the first process, on all of them; what it raises there is raised
    everywhere. Timings differ between processes, and models of different widths train no common
    gradient. `device`: by which processes talk, "cuda" through NCCL."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return made()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=device.type == "cpu")
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = made()
        except Exception as error:  # the others wait for word
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
