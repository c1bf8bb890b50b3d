"""How branches lie in one another: which of them a node or a tensor goes with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .branches import Branch


class Nesting:
    """Branches of one graph, each of which lies inside another, holds it, or shares no node with it
    (of two that overlap the later one of `branches` is left out).

    `around`: for each branch those that hold it, innermost first.
    """

    def __init__(self, branches: Sequence[Branch] = ()) -> None:
        chosen: list[Branch] = []
        for branch in branches:
            own = _span(branch)
            if all(own < s or s < own or not own & s for s in map(_span, chosen)):
                chosen.append(branch)
        self.branches = {b.name: b for b in chosen}
        spans = {b.name: _span(b) for b in chosen}
        self.around = {
            name: tuple(
                sorted(
                    (other for other, nodes in spans.items() if own < nodes),
                    key=lambda other: len(spans[other]),
                )
            )
            for name, own in spans.items()
        }
        innermost = sorted(spans, key=lambda name: -len(spans[name]))
        self._nodes = {node: name for name in innermost for node in spans[name]}
        self._tensors = {t: name for name in innermost for t in self.branches[name].tensors}

    def of_node(self, node: str) -> str:
        """The innermost branch that takes a node along, by its name; '' where none does."""
        return self._nodes.get(node, "")

    def of_tensors(self, tensors: Iterable[str]) -> str:
        """The innermost branch that takes all of these tensors along; '' where none does."""
        chains = [self.chain(self._tensors.get(name, "")) for name in tensors]
        shared = [b for b in chains[0] if all(b in c for c in chains)] if chains else []
        return shared[0] if shared else ""

    def chain(self, name: str) -> tuple[str, ...]:
        """A branch and those that hold it, innermost first; none for ''."""
        return (name, *self.around[name]) if name else ()

    def closed(self, dropped: Collection[str]) -> frozenset[str]:
        """The branches that are gone when these are dropped: those inside them too."""
        return frozenset(b for b in self.branches if any(c in dropped for c in self.chain(b)))

    def outermost(self, dropped: Collection[str]) -> list[str]:
        """Of the dropped ones those that no other one takes along, in the order of the graph."""
        return [b for b in self.branches if b in dropped and not set(self.around[b]) & set(dropped)]


def _span(branch: Branch) -> frozenset[str]:
    return frozenset((*branch.nodes, branch.result))
