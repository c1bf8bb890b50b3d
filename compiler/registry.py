"""Passes by name: those that installed packages register as entry points."""

from __future__ import annotations

import importlib.metadata

from .errors import PlanError
from .pass_class import Pass

GROUP = "prunec.passes"


def pass_class(name: str) -> type[Pass]:
    """The pass registered under a name (entry point group `prunec.passes`).

    Raises PlanError listing the names there are.
    """
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in entries:
        raise PlanError(
            f"there is no pass '{name}'; installed ones are {', '.join(sorted(entries))}."
        )
    loaded = entries[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise PlanError(f"entry point '{name}' is not a Pass subclass; fix the package it is from.")
    return loaded


def providers(fact: str) -> str:
    """The registered passes that provide a fact, in words."""
    names: set[str] = set()
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            loaded = pass_class(entry.name)
        except Exception:  # a package that is broken has nothing to do with the order
            continue
        names |= {loaded.__name__} if fact in loaded.provides else set()
    if not names:
        return f"a pass that provides {fact}"
    return min(names) if len(names) == 1 else f"one of {', '.join(sorted(names))}"
