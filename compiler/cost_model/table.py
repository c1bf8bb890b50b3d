"""Measured times on disk: one file for each device, runtime and set of versions."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from ..durable import write_whole

VARIABLE = "PRUNEC_CACHE"  # names the directory; empty: nothing is kept
VERSION = 1
KEYS = (
    *("device", "device_name", "threads", "dtype", "system", "torch", "capability"),
    *("cuda", "cudnn", "driver", "tf32"),
)

_OTHERS = (TypeError, AttributeError, OverflowError, RecursionError)  # of JSON that is no table


def cache_directory() -> pathlib.Path | None:
    """$PRUNEC_CACHE, else prunec under $XDG_CACHE_HOME or ~/.cache; None when switched off."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return pathlib.Path(given) if given else None
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "prunec"


class CostTable:
    """Milliseconds by op signature, valid for one device, driver, dtype, thread count, runtime and
    its versions; another of any of these is another file. `notes`: what went wrong with it."""

    def __init__(self, facts: dict[str, Any], runtime: str) -> None:
        keys = (*KEYS, "onnxruntime") if runtime == "onnxruntime" else KEYS
        self.environment = {key: facts.get(key) for key in keys} | {"runtime": runtime}
        self.notes: list[str] = []
        self.measured = 0
        directory = cache_directory()
        self.path = directory / f"op-times-{self.key}.json" if directory else None
        self._times = self._read()

    @property
    def key(self) -> str:
        """A name for the environment: 16 hexadecimal digits."""
        text = json.dumps(self.environment, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._times)

    def get(self, signature: str) -> float | None:
        """The milliseconds of an op, None when it was never measured here."""
        return self._times.get(signature)

    def put(self, signature: str, milliseconds: float) -> None:
        """Note a measurement; `save` writes it."""
        self._times[signature] = milliseconds
        self.measured += 1

    def save(self) -> None:
        """Write what was measured, beside what others wrote since; a note where that fails."""
        if self.path is None or not self.measured:
            return
        try:
            data = {
                "version": VERSION,
                "environment": self.environment,
                "times": self._read() | self._times,
            }
            write_whole(self.path, json.dumps(data, indent=0, default=str))
        except OSError as error:
            self.notes.append(f"op times could not be kept in {self.path.parent.name}: {error}")

    def _read(self) -> dict[str, float]:
        if self.path is None:
            return {}
        try:
            if not self.path.is_file():
                return {}
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                return {}
            times = {str(name): float(ms) for name, ms in data["times"].items()}
            if not all(0 < ms < float("inf") for ms in times.values()):
                raise ValueError("a time is not a positive number")
            return times
        except (OSError, ValueError, LookupError, *_OTHERS) as error:
            note = f"the cache {self.path.name} cannot be read and was measured again: {error!r}"
            if note not in self.notes:
                self.notes.append(note)
            return {}
