"""Recipes: TOML files that name an ordered list of passes, found by entry point."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from .cause import cause
from .errors import PlanError
from .option_types import check_options, shown
from .pass_class import Pass
from .registry import pass_class

_CONDITIONS = ("use", "needs", "without")
_MISSING = {"train": "no data was given to train on, or no steps"}
_LOST = {
    "calibration": "; with a few hundred unlabelled samples the layers that were cut would be "
    "repaired, which keeps most of what a raw cut loses",
}


def read_recipe(path: str | pathlib.Path | None) -> list[dict[str, Any]]:
    """The entries of a recipe file; None: the default one. Raises PlanError for a bad file."""
    if path is None:
        text = (
            importlib.resources.files("prunec.compiler")
            .joinpath("recipes/default.toml")
            .read_text()
        )
    else:
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(
                f"recipe {path} cannot be read ({cause(error)}): check the path."
            ) from error
    try:
        entries = tomllib.loads(text).get("pass", [])
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"recipe {path} is not TOML: {error}.") from error
    tables = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not entries or not tables or any("use" not in entry for entry in entries):
        raise PlanError(f'recipe {path} needs [[pass]] entries, each with use = "pass-name".')
    for entry in entries:
        for key in _CONDITIONS:
            if not isinstance(entry.get(key, ""), str):
                raise PlanError(f"recipe {path}: {key} is a text, not {shown(entry[key])}.")
    return entries


def _unmet(entry: Mapping[str, Any], supplies: Mapping[str, Any]) -> str | None:
    """Why an entry takes no part: the name of what it needs, "" where it stands in for a pass that
    has what it needs; None: it does."""
    for condition in ("needs", "without"):
        name = entry.get(condition)
        if name is not None and name not in supplies:
            raise PlanError(
                f"pass '{entry['use']}' has {condition} = '{name}', which is none of "
                f"{', '.join(supplies)}."
            )
    if entry.get("needs") is not None and supplies.get(entry["needs"]) is None:
        return entry["needs"]
    if entry.get("without") is not None and supplies.get(entry["without"]) is not None:
        return ""
    return None


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def build_pipeline(
    entries: list[dict[str, Any]],
    supplies: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Pass], list[str]]:
    """Instances of a recipe's passes, and notes on those left out.

    `supplies`: values by name ("target", "train", "calibration"); a field of a pass called so (or
    `train_loader` for "train") receives it. An entry with `needs` is left out, with a note, when
    that was not given, and one with `without` when it was. `options`: more options per pass name,
    which win over the recipe's.
    Raises PlanError for an option a pass does not have or of a type it does not take, and for
    options of a pass that the recipe does not use.
    """
    used = [entry["use"] for entry in entries]
    for name in options or {}:
        if name not in used:
            raise PlanError(
                f"there are options for '{name}', which the recipe does not use; it uses "
                f"{', '.join(used)}."
            )
    passes: list[Pass] = []
    left_out: dict[str, list[str]] = {}
    offered = {**supplies, "train_loader": supplies.get("train")}
    for entry in entries:
        own = {k.replace("-", "_"): v for k, v in entry.items() if k not in _CONDITIONS}
        cls = pass_class(entry["use"])
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        own.update((options or {}).get(entry["use"], {}))
        unknown = [key for key in own if key not in fields]
        if unknown:
            raise PlanError(
                f"pass '{entry['use']}' has no option '{unknown[0]}'; it has {', '.join(fields)}."
            )
        check_options(f"pass '{entry['use']}'", cls, own)
        missing_supply = _unmet(entry, supplies)
        if missing_supply is not None:
            if missing_supply:
                left_out.setdefault(missing_supply, []).append(entry["use"])
            continue
        for name, value in offered.items():
            if name in fields and name not in own and value is not None:
                own[name] = value
        missing = [
            f.name
            for f in fields.values()
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in own
        ]
        if missing:
            raise PlanError(f"pass '{entry['use']}' needs '{missing[0]}', which was not given.")
        passes.append(cls(**own))
    notes = [
        f"{_listed(names)} {'was' if len(names) == 1 else 'were'} left out: "
        f"{_MISSING.get(need, f'no {need} data was given')}{_LOST.get(need, '')}"
        for need, names in left_out.items()
    ]
    if passes and not any(hasattr(step, "target") for step in passes):
        notes.append("no pass of the recipe takes the target: its own options decide the widths")
    return passes, notes
