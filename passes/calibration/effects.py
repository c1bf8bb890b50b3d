"""What the model loses without each of its branches, measured at its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.inference.branches import Branch
from ...compiler.inference.graph import Graph
from ...compiler.ir.drop import resolved
from ...compiler.ir.memory import written
from ...compiler.ir.program import output_values
from ...compiler.ir.terms import resolve
from ...compiler.rewrite.folds import absorbable
from ...compiler.rewrite.zero_branches import drop_of
from ...compiler.verify.interpreter import ProgramInterpreter
from .moments import wide
from .outputs import OutputError
from .progress import shown
from .streams import measuring
from .tokens import TokenMasks

Instead = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Effect:
    """The relative squared error of the outputs without a branch; `constant`: what takes its place
    along `axis` of the result, None for nothing."""

    error: float
    constant: Tensor | None = None
    axis: int = -1


def droppable(graph: Graph, branches: Sequence[Branch]) -> list[Branch]:
    """Those of the branches, found before other drops, that the graph still has."""
    names = {n.name for n in graph.program.graph.nodes}
    taken = {drop.result for drop in graph.drops}
    replaced = _replaced(graph)
    return [
        b
        for b in branches
        if b.result in names - taken and resolved(b.source, replaced) in names - {b.result}
    ]


def branch_effects(
    graph: Graph,
    branches: Sequence[Branch],
    batches: Sequence[Sequence[Any]],
    replace: str = "nothing",
    progress: str = "",
) -> dict[str, Effect]:
    """The effect of dropping each branch alone from the graph, by its name: of its outputs against
    those of the graph as captured.

    `batches`: flat inputs. `replace`: "nothing", "mean" (the mean of what the branch adds, per
    channel, over all positions that are no padding), or "auto", the better of the two where a bias
    before can take the mean, and nothing elsewhere: the class has no place for it. `progress`:
    the name of a bar, '' for none. Each batch runs once, and from each branch's result on once more
    for each way to replace it: about half of the graph, with no more held than what is alive there.
    """
    masks = TokenMasks(graph.whole.program, batches)
    forks = _Forks(graph, branches)
    with measuring():
        constants = _means(forks, batches, masks) if replace != "nothing" else {}
        if replace == "auto":
            constants = {
                b.name: constants[b.name]
                for b in branches
                if b.name in constants and absorbable(graph, drop_of(graph, b, *constants[b.name]))
            }
        errors: dict[tuple[str, bool], OutputError] = {}
        original = ProgramInterpreter(graph.whole.program)
        order = list(enumerate(batches))
        for batch, flat in shown(order, progress, bool(progress)):
            expected = original(flat)
            for branch, mean, found in forks.run(flat, constants, replace != "mean"):
                key = branch.name, mean
                if key not in errors:
                    errors[key] = OutputError(graph.whole.program, masks)
                errors[key].add(batch, expected, found)
    effects: dict[str, Effect] = {}
    for (name, mean), error in errors.items():
        value = error.value if error.value is not None else 0.0
        value = value if value == value else float("inf")
        constant, axis = constants[name] if mean else (None, -1)
        if name not in effects or value < effects[name].error:
            effects[name] = Effect(value, constant, axis)
    return effects


def channel_axis(graph: Graph, node: fx.Node) -> int:
    """The axis of a value that holds its channels: the one that parameters share; where none or
    several do, the second of images and the last of anything else."""
    held = {id(resolve(t)) for terms in graph.inference.tensors.values() for t in terms}
    terms = graph.inference.terms.get(node)
    axes = [
        i
        for i, term in enumerate(terms if isinstance(terms, list) else ())
        if id(resolve(term)) in held
    ]
    rank = node.meta["val"].dim()
    return axes[0] if len(axes) == 1 else 1 if rank > 3 else rank - 1


def _replaced(graph: Graph) -> dict[str, str]:
    names = {n.name for n in graph.program.graph.nodes}
    return {d.result: d.source for d in graph.drops if d.result not in names}


class _Forks(ProgramInterpreter):
    """Runs a graph, and from the result of each branch on once more without it."""

    def __init__(self, graph: Graph, branches: Sequence[Branch]) -> None:
        super().__init__(graph.program)
        self.nodes = list(graph.program.graph.nodes)
        self.by_name = {n.name: n for n in self.nodes}
        replaced = _replaced(graph)
        self.at: dict[str, list[tuple[Branch, str]]] = {}
        for branch in branches:
            source = resolved(branch.source, replaced)
            self.at.setdefault(branch.result, []).append((branch, source))
        self.sources = {source for pairs in self.at.values() for _, source in pairs}
        self.graph_of = graph
        # what an op in place may change is copied before
        self.writes = any(written(n) for n in self.nodes)

    def values(self, flat: Sequence[Any]) -> Iterator[tuple[int, fx.Node, Tensor, list[Any]]]:
        """At each branch's result: its place, the node, its value, and per branch (it, source)."""
        inputs = iter([x.clone() if isinstance(x, Tensor) else x for x in flat])
        self.env, self._copies = {}, {}
        held: dict[str, Tensor] = {}
        for place, node in enumerate(self.nodes):
            if node.op == "output":
                break
            value = next(inputs) if node.op == "placeholder" else self._step(node)
            if node.name in self.sources:
                held[node.name] = value.clone() if self.writes else value
            if node.name in self.at:
                pairs = [(branch, held[source]) for branch, source in self.at[node.name]]
                yield place, node, value, pairs
            if node.op == "placeholder":
                self.env[node] = value

    def run(  # type: ignore[override]
        self,
        flat: Sequence[Any],
        constants: Mapping[str, tuple[Tensor, int]],
        plain: bool,
    ) -> Iterator[tuple[Branch, bool, list[Any]]]:
        """(branch, whether its mean took its place, the outputs) for every branch; `plain`: also
        with nothing in its place, or where it has no mean."""
        for place, node, _, pairs in self.values(flat):
            for branch, source in pairs:
                if plain or branch.name not in constants:
                    yield branch, False, self._tail(place, node, source)
                if branch.name in constants:
                    constant, axis = constants[branch.name]
                    yield branch, True, self._tail(place, node, _plus(source, constant, axis))

    def _step(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return None
        value = self.run_node(node)
        self.env[node] = value
        for done in self.user_to_last_uses.get(node, ()):
            self.env.pop(done, None)
        return value

    def _tail(self, place: int, node: fx.Node, value: Tensor) -> list[Any]:
        """The outputs when the node has this value; the run itself is not disturbed."""
        before = self.env, self._copies, torch.get_rng_state()
        self.env = {n: self._own(v) for n, v in self.env.items()} | {node: self._own(value)}
        self._copies = dict(self._copies)
        try:
            for later in self.nodes[place + 1 :]:
                if later.op == "output":
                    outputs = later.args[0]
                    return output_values(self.map_nodes_to_values(outputs, later))
                self._step(later)
        finally:
            self.env, self._copies = before[:2]
            torch.set_rng_state(before[2])
        raise AssertionError("a graph has an output node")

    def _own(self, value: Any) -> Any:
        return value.clone() if self.writes and isinstance(value, Tensor) else value


def _plus(source: Tensor, constant: Tensor, axis: int) -> Tensor:
    shape = [1] * source.dim()
    shape[axis] = -1
    return source + constant.to(source).reshape(shape)


def _means(
    forks: _Forks, batches: Sequence[Sequence[Any]], masks: TokenMasks
) -> dict[str, tuple[Tensor, int]]:
    """Per branch the mean of what it adds, in double precision, and the axis it lies along."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    axes: dict[str, int] = {}
    for batch, flat in enumerate(batches):
        for _, node, value, pairs in forks.values(flat):
            axis = channel_axis(forks.graph_of, node)
            last = axis == value.dim() - 1
            tokens = masks.rows(node, batch, value.shape[:-1]) if last else None
            for branch, source in pairs:
                rows = wide(value - source).movedim(axis, -1).flatten(0, -2)
                rows = rows if tokens is None else rows[tokens.to(rows.device)]
                sums[branch.name] = sums.get(branch.name, 0) + rows.sum(0)
                counts[branch.name] = counts.get(branch.name, 0) + len(rows)
                axes[branch.name] = axis
    means = {name: total / max(1, counts[name]) for name, total in sums.items()}
    return {
        name: (mean.float().cpu(), axes[name])
        for name, mean in means.items()
        if bool(mean.isfinite().all())
    }
