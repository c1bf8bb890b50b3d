"""Branches: what a graph can do without, found from its residual sums.

A sum of two values of one shape is residual where one of them, the skip, is needed to compute the
other, the branch; or where both are computed from one value alone and one through more layers (a
projection shortcut: the shallower side is the skip). A branch that is itself a sum is several. A
block is a stretch of the stream, from value to value through skips, norms and activations: a member
of a module list or sequential, or where no module says so, what repeats.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from torch import fx, nn

from ..ir.drop import dying
from .graph import Graph
from .residual import Residuals, alike, is_copy, is_float, same_value
from .rule import op_name

LONGEST = 16  # stretches of the stream in one repeated block


@dataclasses.dataclass(frozen=True)
class Branch:
    """What may be dropped: the value of node `result` becomes that of node `source`.

    `units`: "branch" (one residual sum), "block" (a whole repeated stretch), or both. `value`: the
    node whose value a sum then lacks, None for a block. `nodes`: those that go, by name; `tensors`:
    the parameters and buffers. `path`: the module that holds it, '' where none does.
    """

    name: str
    units: frozenset[str]
    source: str
    result: str
    value: str | None
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    path: str = ""

    @property
    def unit(self) -> str:
        """What it is called in a report."""
        return "branch" if "branch" in self.units else "block"


def fits(branch: Branch, patterns: Iterable[str]) -> bool:
    """Whether a shell pattern fits the branch's name, that of a tensor it holds, or the path of a
    module that holds one."""
    return any(fits_any((branch.name, *branch.tensors), pattern) for pattern in patterns)


def fits_any(names: Iterable[str], pattern: str) -> bool:
    """Whether a shell pattern fits a dotted name or a path that it begins with."""
    match = _matcher(pattern)
    return any(match(name) for name in names)


@functools.cache
def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(f"{fnmatch.translate(pattern)}|{fnmatch.translate(pattern + '.*')}").match


def find_branches(graph: Graph) -> list[Branch]:
    """Every branch and block of a graph, in the graph's order of their results."""
    return _Finder(graph).find()


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.residuals = Residuals(graph)
        self.found: dict[tuple[fx.Node, fx.Node], Branch] = {}

    def find(self) -> list[Branch]:
        for total in self.residuals.sums.values():
            for node, source, value in self.residuals.addends(total):
                self._add("branch", source, node, value)
        for source, result, path in self._blocks():
            self._add("block", source, result, None, path)
        order = self.residuals.order
        branches = sorted(self.found.items(), key=lambda item: order[item[0][1]])
        return _named([branch for _, branch in branches])

    def _add(
        self,
        unit: str,
        source: fx.Node,
        result: fx.Node,
        value: fx.Node | None,
        path: str = "",
    ) -> None:
        gone = self.residuals.removable(source, result)
        if gone is None:
            return
        known = self.found.get((source, result))
        if known is not None:
            units = known.units | {unit}
            self.found[source, result] = dataclasses.replace(
                known, units=units, path=path or known.path
            )
            return
        tensors = sorted({str(n.target) for n in gone if n.op == "get_attr"})
        names = tuple(n.name for n in sorted(gone, key=self.residuals.order.__getitem__))
        self.found[source, result] = Branch(
            path or _common([_path(n) for n in gone if n in self.residuals.contracting]),
            frozenset((unit,)),
            source.name,
            result.name,
            value.name if value is not None else None,
            names,
            tuple(tensors),
            path,
        )

    def _blocks(self) -> Iterator[tuple[fx.Node, fx.Node, str]]:
        members = self._members()
        for chain in self._chains():
            found = list(self._by_module(chain, members))
            yield from found or ((a, b, "") for a, b in self._repeated(chain))

    def _chains(self) -> list[list[fx.Node]]:
        """The streams: values of one shape, each made of the one before by a residual sum or by an
        op on it alone; ends and begins with a sum's skip or result."""
        chains: list[list[fx.Node]] = []
        taken: set[fx.Node] = set()
        for last in reversed(self.residuals.sums):
            if last in taken:
                continue
            chain = [last]
            while (before := self._before(chain[-1])) is not None and before not in taken:
                chain.append(before)
            taken.update(chain)
            chain.reverse()
            while (after := self._after(chain[-1])) is not None and after not in taken:
                chain.append(after)
                taken.add(after)
            chains.append(chain)
        return chains

    def _before(self, node: fx.Node) -> fx.Node | None:
        if node in self.residuals.sums:
            before = self.residuals.sums[node].skip
        else:
            values = [x for x in node.all_input_nodes if x.op != "get_attr" and is_float(x)]
            if node.op != "call_function" or len(values) != 1 or node in self.residuals.contracting:
                return None
            before = self.residuals.origin(values[0])
        return before if alike(node, before) and before.op != "get_attr" else None

    def _after(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        while len(users) == 1 and is_copy(users[0]):
            users = list(users[0].users)
        if len(users) != 1 or users[0] in self.residuals.sums:
            return None
        return users[0] if self._before(users[0]) is node else None

    def _members(self) -> set[str]:
        """The paths of the members of module lists and sequentials."""
        return {
            f"{path}.{name}" if path else name
            for path, module in self.graph.source.named_modules(remove_duplicate=False)
            if isinstance(module, (nn.ModuleList, nn.Sequential))
            for name, _ in module.named_children()
        }

    def _by_module(
        self, chain: list[fx.Node], members: set[str]
    ) -> Iterator[tuple[fx.Node, fx.Node, str]]:
        """Stretches that lie in one member of a list and leave something of the chain outside; of
        nested ones the outermost."""
        spans: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(chain):
            for path in _paths(node) & members:
                spans[path].append(i)
        found: dict[str, tuple[int, int]] = {}
        for path, places in spans.items():
            first, last = places[0] - 1, places[-1]
            whole = len(places) == last - first and any(
                chain[i] in self.residuals.sums for i in places
            )
            others = any(
                chain[i] in self.residuals.sums for i in range(len(chain)) if i not in places
            )
            if first >= 0 and whole and others:
                found[path] = first, last
        for path, (first, last) in found.items():
            if not any(path.startswith(f"{outer}.") for outer in found):
                yield chain[first], chain[last], path

    def _repeated(self, chain: list[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
        """The stretches of the pattern that repeats most of the chain; of equals the shortest that
        begins where a skip does."""
        looks = [self._looks(a, b) for a, b in pairwise(chain)]
        best: tuple[int, int, int, int, int] | None = None
        for period in range(1, min(LONGEST, len(looks) // 2) + 1):
            for start in range(len(looks) - 2 * period + 1):
                count = 1
                while (
                    looks[start : start + period]
                    == looks[start + count * period : start + (count + 1) * period]
                ):
                    count += 1
                begins = chain[start + 1] in self.residuals.sums
                sums = any(n in self.residuals.sums for n in chain[start + 1 : start + period + 1])
                rank = (count * period, begins, -period, -start, count)
                if count > 1 and sums and (best is None or rank > best):
                    best = rank
        if best is not None:
            _, _, period, start, count = best
            for i in range(count):
                yield chain[i * -period - start], chain[(i + 1) * -period - start]

    def _looks(self, before: fx.Node, node: fx.Node) -> tuple[str, ...]:
        """What is done between two values of a chain, by the names of the ops."""
        if node not in self.residuals.sums:
            return (op_name(node.target),)
        inner = sorted(dying(node, before), key=self.residuals.order.__getitem__)
        ops = [op_name(n.target) for n in inner if n.op == "call_function" and not same_value(n)]
        return (*ops, op_name(node.target))


def _paths(node: fx.Node) -> set[str]:
    """The paths of all modules that a node ran in."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = (e[0] for e in stack.values() if isinstance(e, tuple) and isinstance(e[0], str))
    return {path.split("@")[0] for path in entries} - {""}


def _path(node: fx.Node) -> str:
    return max(_paths(node), key=len, default="")


def _common(paths: Sequence[str]) -> str:
    """The innermost module that holds all of the paths."""
    shared: list[str] = []
    for parts in zip(*(path.split(".") for path in paths if path), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _named(branches: list[Branch]) -> list[Branch]:
    """Names that no two share: the module's, with the node's where that does not tell, and those of
    both ends for a block without a module."""
    counts = Counter(b.name for b in branches)
    found: list[Branch] = []
    for b in branches:
        name = b.name
        if not b.path and "branch" not in b.units:
            name = f"{b.source}..{b.result}"
        elif not b.name or (b.name != b.path and counts[b.name] > 1):
            name = f"{b.name}:{b.result}" if b.name else b.result
        found.append(dataclasses.replace(b, name=name))
    return found
