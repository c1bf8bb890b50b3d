"""The calling convention of an emitted graph: its model's arguments, its model's type of result."""

from __future__ import annotations

import dataclasses
import inspect
import keyword
from collections.abc import Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from ..ir.call_spec import CallSpec
from ..ir.module_paths import ALIAS, is_plain
from ..ir.program import Program
from .call_tree import from_tree, to_tree
from .guarded_call import with_check
from .row_values import refused

_KEYS = {"names", "parameters", "in", "out", "spec"}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of forward's. `default`: that of a flag, which is the value it was captured with."""

    name: str
    keyword_only: bool = False
    default: Any = inspect.Parameter.empty

    def __str__(self) -> str:
        empty = self.default is inspect.Parameter.empty
        return self.name if empty else f"{self.name}={self.default!r}"


class CallCodeGen(_PyTreeCodeGen):
    """Code that takes the model's arguments and returns its type of result.

    `parameters`: forward's, in the model's order and with defaults for captured constants.
    `aliases`: the paths that nodes refer to by another name, since theirs is no Python name.
    `call`: the sizes and constants that the graph holds for, against which calls are checked.
    """

    def __init__(
        self,
        info: _PyTreeInfo,
        parameters: Sequence[Parameter],
        aliases: dict[str, str] | None = None,
        call: CallSpec | None = None,
    ) -> None:
        super().__init__(info)
        self.call = call
        self.parameters = tuple(parameters)
        self.aliases = dict(aliases or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> CallCodeGen:
        # specs are immutable, and torch warns when one is copied
        return CallCodeGen(self.pytree_info, self.parameters, self.aliases, self.call)

    def target_of(self, path: str) -> str:
        """The target for a path: itself, or an alias."""
        if is_plain(path):
            return path
        known = {own: alias for alias, own in self.aliases.items()}
        return known.get(path) or self._new_alias(path)

    def _new_alias(self, path: str) -> str:
        alias = f"{ALIAS}{len(self.aliases)}"
        self.aliases[alias] = path
        return alias

    def path_of(self, target: str) -> str:
        """The path that a target stands for."""
        return self.aliases.get(target, target)

    @property
    def header(self) -> str:
        """Forward's parameters as source text."""
        marked = next((i for i, p in enumerate(self.parameters) if p.keyword_only), None)
        parts = ["self", *map(str, self.parameters)]
        if marked is not None:
            parts.insert(marked + 1, "*")
        return ", ".join(parts)

    def gen_fn_def(self, *args: Any, **kwargs: Any) -> str:
        source = super().gen_fn_def(*args, **kwargs)
        start, end = source.index("(") + 1, source.index(")")
        names = [str(name).split(":")[0].strip() for name in args[0]]
        return with_check(f"{source[:start]}{self.header}{source[end:]}", names)

    def to_rows(self, foreign: list[Any] | None = None) -> dict[str, Any]:
        """The call as plain values; `foreign` as in `to_tree`."""
        names, in_spec, out_spec = self.pytree_info
        assert out_spec is not None
        empty = inspect.Parameter.empty
        return {
            "names": list(names),
            "parameters": [
                [p.name, p.keyword_only, *([] if p.default is empty else [p.default])]
                for p in self.parameters
            ],
            "in": to_tree(in_spec, foreign),
            "out": to_tree(out_spec, foreign),
            "spec": None if self.call is None else self.call.to_json(),
        }


def call_of(data: Any, foreign: list[Any] | None = None) -> CallCodeGen:
    """The calling convention of `to_rows`'s values. Raises ArtifactError where they are not what a
    captured call is: every name is an identifier and stands once, and the counts agree."""
    if not isinstance(data, dict) or not set(data) == _KEYS:
        raise refused("no calling convention")
    in_spec, out_spec = from_tree(data["in"], foreign), from_tree(data["out"], foreign)
    names, rows = data["names"], data["parameters"]
    if not isinstance(names, list) or not isinstance(rows, list):
        raise refused("no names of arguments")
    for row in rows:
        if not isinstance(row, list) or len(row) not in (2, 3) or type(row[1]) is not bool:
            raise refused("an argument of no known form")
        if len(row) == 3 and not (row[2] is None or type(row[2]) in (bool, int, str)):
            raise refused("a default that is no constant")
    parameters = [Parameter(*row) for row in rows]
    given = [p.name for p in parameters]
    for name in (*names, *given):
        if not isinstance(name, str) or not _is_name(name):
            raise refused(f"the argument {str(name)[:40]!r}")
    once = len(set(names)) == len(names) and "self" not in names and sorted(names) == sorted(given)
    if not once or [p.keyword_only for p in parameters] != sorted(
        p.keyword_only for p in parameters
    ):
        raise refused("arguments that do not agree with each other")
    _check_call(in_spec, names, parameters)
    spec = None if data["spec"] is None else CallSpec.from_json(data["spec"])
    if spec is not None and len(spec.inputs) != in_spec.num_leaves:
        raise refused("arguments that do not agree with each other")
    return CallCodeGen(_PyTreeInfo(list(names), in_spec, out_spec), parameters, call=spec)


def _is_name(text: str) -> bool:
    """Whether a text may stand in source as the name of an argument."""
    return text.isidentifier() and not keyword.iskeyword(text) and "__" not in text[:2]


def _check_call(
    in_spec: pytree.TreeSpec, names: list[str], parameters: Sequence[Parameter]
) -> None:
    """The arguments of the call are (positional, by keyword), and forward takes them so."""
    parts = in_spec.children() if in_spec.type is tuple else []
    if [part.type for part in parts] != [tuple, dict]:
        raise refused("a call that is not (positional, by keyword)")
    positional, keywords = parts[0].num_children, list(parts[1].context)
    if names[positional:] != keywords:
        raise refused("arguments that do not agree with each other")
    first = parameters[:positional]
    if [p.name for p in first] != names[:positional] or any(p.keyword_only for p in first):
        raise refused("a positional argument that forward does not take by position")
    defaults = [p.default is not inspect.Parameter.empty for p in parameters if not p.keyword_only]
    if defaults != sorted(defaults):
        raise refused("an argument without a default after one with")


def call_codegen(program: Program) -> CallCodeGen:
    """The calling convention of a program: its model's, restricted to the captured arguments."""
    names = list(program.argument_names)
    info = _PyTreeInfo(names, program.in_spec, program.out_spec)
    return CallCodeGen(info, _call_parameters(program, names), call=program.call)


def _call_parameters(program: Program, names: list[str]) -> list[Parameter]:
    """Where forward has an argument that was not captured, those after it are keyword-only."""
    positional = program.in_spec.child(0).num_children
    keywords = list(program.in_spec.child(1).context or [])
    values = dict(zip(names[:positional], program.args, strict=False))
    values |= {
        n: program.kwargs[k]
        for n, k in zip(names[positional:], keywords, strict=True)
        if k in program.kwargs
    }
    order = _parameters(program.source)
    named = sorted(names[positional:], key=lambda n: order.index(n) if n in order else len(order))
    follows = order[positional:] if set(names[:positional]) <= set(order) else named
    parts, marked, defaults = [Parameter(n) for n in names[:positional]], False, False
    for i, name in enumerate(named):
        constant = isinstance(values.get(name, ...), (bool, int, str, type(None)))
        if not marked and (follows[i : i + 1] != [name] or (defaults and not constant)):
            marked = True
        defaults |= constant
        parts.append(Parameter(name, marked, *([values[name]] if constant else [])))
    return parts


def _parameters(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]
