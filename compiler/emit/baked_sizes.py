"""Integers that modules keep as attributes and use as sizes: found by looking, not by class.

A module whose nodes or tensors shrink from 64 to 32 and that holds an integer 64 may have to hold
32. What the nodes' own arguments show is strong evidence; what the terms of its tensors and values
show is weak, and counts only for attributes named like widths. The back end tries and compares.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import nn

from ..inference.graph import Graph
from ..ir.program import Program
from ..ir.terms import Var
from .resize_modules import settled
from .size_evidence import Evidence, look

_WIDTHS = re.compile(r"head|dim|hid|size|width|channel|feature|embe?d|inner|group|plane|units|n_?f")
_NO_WIDTHS = re.compile(
    r"patch|window|kernel|image|img|vocab|max|chunk|layer|position|block|pad|stride|label|idx"
)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What one attribute of one class may be set to, for all its instances at once.

    `choices`: per alternative, new values by (module path, attribute); the first is {}: as it is.
    `strong`, `trusted`: which choice the strong evidence, and all of it, speaks for.
    """

    owner: str
    choices: tuple[dict[tuple[str, str], Any], ...]
    strong: int = 0
    trusted: int = 0


def find_decisions(
    graph: Graph, dense: Program, sizes: dict[Var, int], module: nn.Module
) -> list[Decision]:
    """The attributes of a module that may have to change. `sizes`: the new size of each variable;
    `module`: a copy of the original, standard layers already resized."""
    sites = look(graph, dense, sizes, module)
    found: dict[tuple[str, str], dict[str, tuple[list[Any], bool, bool]]] = defaultdict(dict)
    evident: Counter[str] = Counter()
    for path, evidence in sites.evidence.items():
        owner = sites.modules[path]
        kind = type(owner).__qualname__
        evident[kind] += evidence.changed()
        known = settled(owner)
        for name, value in vars(owner).items():
            alternatives = _alternatives(value, evidence)
            if alternatives is not None and name not in known:
                found[kind, name][path] = alternatives
    decisions = []
    for (kind, name), places in found.items():
        count = max(len(values) for values, _, _ in places.values())
        choices: list[dict[tuple[str, str], Any]] = [{}]
        for i in range(count):
            choices.append(
                {(path, name): v[min(i, len(v) - 1)] for path, (v, _, _) in places.items()}
            )
        apt = not _NO_WIDTHS.search(name)  # a layer_idx of 12 is no number of heads
        strong = apt and any(shown for _, _, shown in places.values())
        sure = all(alone for _, alone, _ in places.values()) and len(places) == evident[kind]
        weak = apt and sure and bool(_WIDTHS.search(name))
        decisions.append(Decision(kind, tuple(choices), int(strong), int(strong or weak)))
    return decisions


def _alternatives(value: Any, evidence: Evidence) -> tuple[list[Any], bool, bool] | None:
    """(new values, whether the first has no rival, whether nodes' arguments show it)."""
    if type(value) is int:
        options, alone = evidence.options(value)
        return (options, alone, value in evidence.strong) if options else None
    if type(value) in (list, tuple, torch.Size) and all(type(v) is int for v in value):
        lists = evidence.list_options(list(value))
        if lists:
            return lists, len(lists) == 1, True
    return None
