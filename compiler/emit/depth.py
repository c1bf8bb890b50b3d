"""How deep the user's own class is without dropped branches: what leaves it, and what says so."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..inference.graph import Graph
from ..inference.residual import same_value
from ..ir.program import module_path
from ..verify.backends import run_module
from .baked_sizes import Decision
from .thin_modules import Lists, Thinning

_DEPTH = re.compile(r"layer|depth|block")
_SIDES = ("encoder", "decoder", "text", "vision")


def thinnings(graph: Graph) -> list[Thinning]:
    """What may leave the user's class, the likeliest first: members of lists all of whose layers
    went with dropped branches, and elsewhere the outermost modules of which nothing remains become
    stubs; then stubs alone, for lists whose members are counted on. Without drops, nothing."""
    if not graph.drops:
        return [Thinning()]
    thin = _emptied(graph, lists=True)
    stubs = _emptied(graph, lists=False) if thin.members else thin
    forms = _forms(graph, {*thin.stubs, *stubs.stubs})
    found = [thin, stubs] if thin.members else [thin]
    return [
        Thinning(t.members, {p: kind + forms.get(p, "") for p, kind in t.stubs.items()})
        for t in found
    ]


def _emptied(graph: Graph, lists: bool) -> Thinning:
    """Which modules nothing remains of. `lists`: members of lists are taken out."""
    source = graph.source
    layers = {s.node.name for s in graph.whole.inference.sinks}
    layers |= {
        user.name for n in graph.whole.program.graph.nodes if n.op == "get_attr" for user in n.users
    }
    results = {drop.result for drop in graph.drops}
    left = {n.name for n in graph.program.graph.nodes} - results
    ran: dict[str, list[str]] = {}
    for node in graph.whole.program.graph.nodes:
        if node.op == "call_function" and not same_value(node):
            for path in _around(module_path(node)):
                ran.setdefault(path, []).append(node.name)
    members: dict[str, list[int]] = {}
    stubs: dict[str, str] = {}
    taken: list[str] = []
    for path, module in source.named_modules(remove_duplicate=False):
        nodes = ran.get(path)
        if not path or nodes is None or any(path.startswith(f"{t}.") for t in taken):
            continue
        owner, _, name = path.rpartition(".")
        weights = [node for node in nodes if node in layers]
        listed = isinstance(source.get_submodule(owner), Lists) and name.isdecimal()
        emptied = bool(weights) and left.isdisjoint(weights)
        if listed and emptied and lists:
            members.setdefault(owner, []).append(int(name))
            taken.append(path)
        elif not isinstance(module, nn.ModuleList) and left.isdisjoint(nodes):
            stubs[path] = "zero" if results.isdisjoint(nodes) else "input"
            taken.append(path)
    return Thinning(members, stubs)


def _forms(graph: Graph, paths: Collection[str]) -> dict[str, str]:
    """How many values each module returns, as a stub's form says it; found by a call."""
    forms: dict[str, str] = {}

    def see(path: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            forms[path] = f"/{len(result)}" if isinstance(result, (tuple, list)) else ""

        return graph.source.get_submodule(path).register_forward_hook(hook)

    program = graph.whole.program
    hooks = [see(path) for path in paths]
    try:
        run_module(program, graph.source, (program.args, program.kwargs))
    finally:
        for hook in hooks:
            hook.remove()
    return forms


def _around(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def depth_decision(model: nn.Module, thinning: Thinning) -> Decision | None:
    """What modules and configs would state about their number of layers once members are out, as
    one decision; None where nothing does."""
    values: dict[tuple[str, str], Any] = {}
    for path, gone in thinning.members.items():
        owner = model.get_submodule(path)
        assert isinstance(owner, Lists)
        count = len(owner)
        for place in ("", *_around(path)):
            part = model.get_submodule(place)
            for name, new in _restated(vars(part), path, count, gone):
                values[place, name] = new
            config = vars(part).get("config")
            if hasattr(config, "to_dict"):
                for name, new in _restated(vars(config), path, count, gone):
                    values[place, f"config.{name}"] = new
    return Decision("depth", ({}, values), strong=1, trusted=1) if values else None


def _restated(
    stated: Mapping[str, Any], path: str, count: int, gone: Sequence[int]
) -> Iterator[tuple[str, Any]]:
    """(attribute, new value): a number of layers, a list with an entry for each, or a list of
    numbers, one per stage. Where some attribute names the side of the model, only that one."""
    named = {n: v for n, v in stated.items() if _DEPTH.search(n) and not n.startswith("_")}
    sides = [s for s in _SIDES if s in path]
    own = {n: v for n, v in named.items() if any(s in n for s in sides)}
    others = {n: v for n, v in named.items() if not any(s in n for s in _SIDES)}
    stages = [int(part) for part in path.split(".") if part.isdecimal()]
    for name, value in (own or others).items():
        if type(value) is int and value == count:
            yield name, count - len(gone)
        elif isinstance(value, (list, tuple)):
            new = list(value)
            if stages and stages[0] < len(new) and new[stages[0]] == count:
                new[stages[0]] = count - len(gone)
                yield name, new
            elif len(new) == count:
                yield name, [x for i, x in enumerate(new) if i not in gone]
