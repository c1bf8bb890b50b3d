"""Rows of a benchmark as they come: those of an earlier run are kept, each new one is saved."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from record import RESULTS, record
from rich.console import Console

Row = dict[str, Any]


class Rows:
    """The rows of `results/NAME.json`; `keys` tell one from another."""

    def __init__(self, name: str, keys: Sequence[str], resume: bool) -> None:
        self.name, self.keys = name, tuple(keys)
        path = RESULTS / f"{name}.json"
        self.found: list[Row] = []
        if resume and path.exists():
            self.found = json.loads(path.read_text())["rows"]
        self.known = {self.key(row) for row in self.found}
        self._console = Console(width=150)
        self._began = time.perf_counter()

    def key(self, row: Row) -> tuple[Any, ...]:
        """By what the row is told from others."""
        return tuple(row[k] for k in self.keys)

    def missing(self, *key: Any) -> bool:
        """Whether there is no such row; the time of the next one begins here."""
        self._began = time.perf_counter()
        return key not in self.known

    def drop(self, *key: Any) -> None:
        """Forget the row of these keys, if there is one; the time of the next one begins here."""
        self.found = [row for row in self.found if self.key(row) != key]
        self.known.discard(key)
        self._began = time.perf_counter()

    def add(self, row: Row) -> None:
        """Save a row, with the seconds it took, and print it."""
        row.setdefault("seconds", round(time.perf_counter() - self._began, 1))
        self.found.append(row)
        self.known.add(self.key(row))
        record(self.name, self.found)
        self._console.print(*(short(v) for v in row.values()), highlight=False)


def short(value: Any) -> str:
    """A value for a line."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def measures(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """The names of what was measured."""
    return [k for k in rows[0] if k not in (*keys, "parameters", "seconds")]


def means(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """The mean of each measure."""
    return {n: sum(row[n] for row in rows) / len(rows) for n in names}
