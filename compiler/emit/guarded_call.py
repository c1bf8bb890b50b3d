"""The check of an emitted graph's call: against what it was captured for, on every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..ir.call_spec import CallSpec

CHECK = "_check_call"


def with_check(source: str, names: Sequence[str]) -> str:
    """The head of a generated forward, followed by the check of its flat inputs. A module of
    another class that is made of the same graph has none, and checks nothing."""
    if not names:
        return source
    return f"{source}\n    getattr(self, {CHECK!r}, tuple)(({', '.join(names)},))"


def is_traced() -> bool:
    """Whether the graph is being traced: its sizes are then the tracer's to guard."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def check_call(call: CallSpec | None, flat: Sequence[Any]) -> None:
    """Raise CallError where a graph was not captured for these flat inputs."""
    if call is not None and not any(isinstance(value, fx.Proxy) for value in flat):
        call.check(flat)
