"""A bar that says how many layers are done, on terminals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...compiler.console import plain_console

T = TypeVar("T")


def shown(items: Sequence[T], name: str, show: bool) -> Iterator[T]:
    """The items, counted on a bar called `name` while they are worked on."""
    console = plain_console(stderr=True)
    with Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (show and console.is_terminal),
    ) as bar:
        task = bar.add_task(name, total=len(items))
        for item in items:
            yield item
            bar.advance(task)
