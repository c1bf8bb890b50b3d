"""Sizes seen shrinking inside each module: in nodes' integer arguments, tensors and values."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..ir.program import Program, shape_of
from ..ir.terms import Fixed, Term, Var, children, resolve
from .leaf_modules import innermost
from .resize_modules import is_standard

Sizes = list[int | None]  # None: a size that is dynamic


@dataclasses.dataclass
class Evidence:
    """Sizes seen in one module: new sizes per old one, how often; an unchanged one counts too."""

    strong: dict[int, Counter[int]] = dataclasses.field(
        default_factory=lambda: defaultdict(Counter)
    )
    weak: dict[int, Counter[int]] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    lists: list[tuple[Sizes, Sizes]] = dataclasses.field(default_factory=list)

    def changed(self) -> bool:
        """Whether any size changed."""
        return any(
            new != old for seen in (self.strong, self.weak) for old in seen for new in seen[old]
        )

    def options(self, value: int) -> tuple[list[int], bool]:
        """The new sizes an old one may have, best first, and whether the first has no rival."""
        strong, weak = self.strong.get(value, Counter()), self.weak.get(value, Counter())
        seen = [new for new, _ in strong.most_common()]
        seen += [new for new, _ in weak.most_common() if new not in seen]
        changed = [new for new in seen if new != value]
        alone = len(strong) == 1 if strong else len(weak) == 1
        return changed, alone and bool(changed) and changed[0] == seen[0]

    def list_options(self, value: Sizes) -> list[Sizes]:
        """The same for a list: where it stands in the list arguments of nodes; else each of its
        numbers by itself."""
        size, found = len(value), list[Sizes]()
        for old, new in self.lists:
            for i in range(len(old) - size + 1):
                run = new[i : i + size]
                if old[i : i + size] == value and run != value and run not in found:
                    found.append(run)
        single = [
            self.options(v)[0][0] if v in self.strong and self.options(v)[0] else v for v in value
        ]
        return found if single == value or single in found else [*found, single]


def look(graph: Graph, dense: Program, sizes: dict[Var, int], module: nn.Module) -> Sites:
    """All that the change of sizes shows about the modules inside `module`."""
    sites = Sites(module)
    _look_at_nodes(graph, dense, sizes, sites)
    _look_at_tensors(graph, sizes, sites)
    return sites


class Sites:
    """The modules that can hold sizes, by path; each stands for the standard layers inside it."""

    def __init__(self, module: nn.Module) -> None:
        self.modules = dict(module.named_modules())
        first = {id(m): path for path, m in self.modules.items()}
        self.path_of = {
            path: first[id(m)] for path, m in module.named_modules(remove_duplicate=False)
        }
        self.evidence: dict[str, Evidence] = defaultdict(Evidence)

    def outwards(self, path: str) -> Iterator[str]:
        """The paths of the modules around a place that are no standard layers, innermost first."""
        while True:
            known = self.path_of.get(path)
            if known is not None and not is_standard(self.modules[known]):
                yield known
            if not path:
                return
            path = path.rpartition(".")[0]

    def see_argument(self, node: fx.Node, old: int, new: int) -> None:
        """A node's integer argument: evidence for the innermost module that holds the number."""
        for path in self.outwards(innermost(node)):
            if any(_holds(value, old) for value in vars(self.modules[path]).values()):
                self.evidence[path].strong[old][new] += 1
                return

    def see_list(self, node: fx.Node, old: Sizes, new: Sizes) -> None:
        """A node's argument that is a list of integers."""
        for path in self.outwards(innermost(node)):
            self.evidence[path].lists.append((old, new))

    def see_size(self, path: str, old: int, new: int) -> None:
        """The size of a tensor or value in a module."""
        inner = next(self.outwards(path), None)
        if inner is not None:
            self.evidence[inner].weak[old][new] += 1


def _holds(value: Any, number: int) -> bool:
    if type(value) in (list, tuple, torch.Size):
        return any(type(v) is int and v == number for v in value)
    return type(value) is int and value == number


def _look_at_nodes(graph: Graph, dense: Program, sizes: dict[Var, int], sites: Sites) -> None:
    originals = {node.name: node for node in graph.program.graph.nodes}
    unchanged: list[tuple[fx.Node, int]] = []
    for node in dense.graph.nodes:
        original = originals.get(node.name)
        if original is None or node.op != "call_function":
            continue
        path = innermost(original)
        inner = sites.path_of.get(path)
        if inner is None or not is_standard(sites.modules[inner]):
            for old_list, new_list in _list_pairs(original, node):
                sites.see_list(original, old_list, new_list)
            for old, new in _argument_pairs(original, node):
                if old != new:
                    sites.see_argument(original, old, new)
                else:
                    unchanged.append((original, old))
        terms = graph.inference.terms.get(original)
        for group in terms if isinstance(terms, tuple) else (terms,):
            for term in group if isinstance(group, list) else ():
                for old, new in _size_pairs(term, sizes):
                    if old != new:
                        sites.see_size(path, old, new)
    for node, size in unchanged:  # only where the same number also changed
        for path in sites.outwards(innermost(node)):
            if size in sites.evidence[path].strong:
                sites.evidence[path].strong[size][size] += 1
                break


def _look_at_tensors(graph: Graph, sizes: dict[Var, int], sites: Sites) -> None:
    for name, terms in graph.axes.items():
        for known in (name, *graph.aliases.get(name, ())):
            for term in terms:
                for old, new in _size_pairs(term, sizes):
                    sites.see_size(known.rpartition(".")[0], old, new)


def _size_pairs(term: Term, sizes: dict[Var, int]) -> Iterator[tuple[int, int]]:
    """(old, new) sizes of a term and of the terms it is made of."""
    term = resolve(term)
    if term.size is None or (isinstance(term, Fixed) and term.size < 2):
        return
    yield term.size, width_of(term, sizes)
    for child in children(term):
        yield from _size_pairs(child, sizes)


def _argument_pairs(original: fx.Node, node: fx.Node) -> Iterator[tuple[int, int]]:
    if original.target is not node.target:  # a split or chunk that became split_with_sizes
        sizes = next((a for a in node.args if isinstance(a, (list, tuple))), ())
        values, axis = original.meta["val"], node.args[-1]
        if isinstance(axis, int) and len(values) == len(sizes):
            for value, new in zip(values, sizes, strict=True):
                old = shape_of(value)[axis]
                if isinstance(old, int) and isinstance(new, int):
                    yield old, new
        return
    olds, news = _integers(original), _integers(node)
    for place, old in olds.items():
        if place in news:
            yield old, news[place]


def _list_pairs(original: fx.Node, node: fx.Node) -> Iterator[tuple[Sizes, Sizes]]:
    for old, new in zip(original.args, node.args, strict=False):
        if not isinstance(old, (list, tuple)) or not isinstance(new, (list, tuple)):
            continue
        if len(old) == len(new):
            plain = [[v if type(v) is int else None for v in values] for values in (old, new)]
            if plain[0] != plain[1]:
                yield plain[0], plain[1]


def _integers(node: fx.Node) -> dict[tuple[Any, ...], int]:
    found: dict[tuple[Any, ...], int] = {}

    def walk(value: Any, place: tuple[Any, ...]) -> None:
        if type(value) is int:
            found[place] = value
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, (*place, i))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*place, key))

    walk((node.args, dict(node.kwargs)), ())
    return found
