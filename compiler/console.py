"""Consoles and tables whose texts go out as they are: no markup, no emoji, no highlighting."""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_console(
    file: IO[str] | None = None, width: int | None = None, stderr: bool = False
) -> Console:
    """A console that prints `[bold]x[/bold]` and `:smile:` letter by letter."""
    return Console(
        file=file, width=width, stderr=stderr, markup=False, emoji=False, highlight=False
    )


class PlainTable(Table):
    """A table whose title, heads, cells and caption are plain on every console."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("title", "caption") and isinstance(value, str):
            value = Text(value, style=f"table.{name}")
        super().__setattr__(name, value)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """As Table's, with a plain head."""
        super().add_column(_plain(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As Table's, with plain cells."""
        super().add_row(*map(_plain, cells), **options)


def _plain(cell: Any) -> Any:
    return Text(cell) if isinstance(cell, str) else cell
