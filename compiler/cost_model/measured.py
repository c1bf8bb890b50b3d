"""The time of a model as a cost model: its ops, measured in place at the widths that matter."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..capture.batch import batch_size, resize_batch
from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..inference.nesting import Nesting
from ..inference.rule import op_name
from ..ir.terms import Term, Var, variables
from ..measure.environment import describe
from ..rewrite.rewrite import rewrite
from .curve import Axis, Curve, axes_of
from .design import assignments
from .onnx_op import exported, onnx_milliseconds
from .parts import CostModel, Price, gather
from .stepping import Step, Stepper, works
from .table import CostTable

RUNS = 7  # of a model at some widths, at most
FEWEST = 3
SECONDS = 1.0  # of them, at most, once they are the fewest
CONTRACTIONS = ("linear", "mm", "matmul", "attention", "conv1d", "conv2d", "conv3d", "convolution")
Sizes = Mapping[Var, int]


class OpTimes:
    """Measures the ops of a graph at the widths that matter, on one device, batch and runtime.

    `lowest`: for every variable that may change its least size. Under "torch" every op that does
    work and has such a width is timed in runs of the rewritten program. Under "onnxruntime" and
    "compile", which fuse the rest, contractions are timed (each alone in onnxruntime, whose memory
    is planned; by eager torch, whose kernels are the same), and the rest counts by its elements.
    Ops of one signature share a time; `table` keeps them on disk. Ops in a branch of `nesting`
    count even where no width changes them, since they go with it.
    """

    def __init__(
        self,
        graph: Graph,
        lowest: Sizes,
        *,
        runtime: str = "torch",
        batch: int | None = None,
        nesting: Nesting | None = None,
    ) -> None:
        self.graph, self.lowest, self.runtime = graph, dict(lowest), runtime
        self.nesting = nesting or Nesting()
        program = graph.program
        args, kwargs = program.args, program.kwargs
        if batch is not None and program.batched and batch != batch_size(args, kwargs):
            args, kwargs = resize_batch(args, kwargs, batch)
        self.inputs = program.flat_inputs(args, kwargs)
        dtypes = {t.dtype for t in program.tensors.values() if t.is_floating_point()}
        facts = describe(program.device(), min(dtypes, key=str, default=None))
        self.table = CostTable(facts, "onnxruntime" if runtime == "onnxruntime" else "torch")
        self.nodes = {n.name: n for n in program.graph.nodes}
        self.axes = self._variable_ops()
        self.timed: dict[str, Curve] = {}
        self.counted: dict[str, frozenset[Var]] = {}
        self._curves: dict[tuple[str, ...], Curve] = {}
        self._elements: dict[str, int] = {}
        self._measure()

    def model(self, per_element: float = 0.0) -> CostModel:
        """Milliseconds by widths, `per_element` for each element that an op goes through which
        is not timed; without what no width changes."""
        prices: list[tuple[frozenset[Var], str, Price]] = []
        for name, curve in self.timed.items():
            price = functools.partial(_price, self.axes[name], curve)
            prices.append((_variables(self.axes[name]), self.nesting.of_node(name), price))
        if per_element:
            for name, own in self.counted.items():
                made = functools.partial(self._made, name, per_element)
                prices.append((own, self.nesting.of_node(name), made))
        return CostModel(gather(prices), 0.0, "ms")

    def elements(self) -> float:
        """The elements that ops which are not timed go through, at full widths."""
        return float(sum(self._elements.values()))

    def extremes(self) -> dict[str, tuple[float, float]]:
        """By op with a width, milliseconds at full size and with every width at its floor."""
        return {
            name: (curve.at(self._position(name, {})), curve.at(self._position(name, self.lowest)))
            for name, curve in self.timed.items()
            if self.axes[name]
        }

    def refine(self, sizes: Sizes) -> bool:
        """Measure every op at exactly these sizes, unless all are known; whether one was not."""
        places = {name: self._position(name, sizes) for name in self.timed}
        if all(place in self.timed[name].exact for name, place in places.items()):
            return False
        for name, milliseconds in self._times(sizes).items():
            curve = self.timed[name]
            if places[name] not in curve.exact:
                curve.add(places[name], milliseconds)
        self.table.save()
        return True

    def _variable_ops(self) -> dict[str, list[Axis]]:
        """By node, the widths of each op that does work; none where only a branch changes it."""
        chosen = frozenset(self.lowest)
        found: dict[str, list[Axis]] = {}
        for node in self.nodes.values():
            if node.op == "call_function" and works(node):
                axes = axes_of(_terms(self.graph, node), chosen)
                if axes or self.nesting.of_node(node.name):
                    found[node.name] = axes
        return found

    def _measure(self) -> None:
        for step in self._stepper({}).steps():
            name = step.node.name
            if name not in self.axes:
                continue
            if self._timeable(step):
                key = (step.signature, *self._places(name))
                self.timed[name] = self._curves.setdefault(key, Curve())
            else:
                self.counted[name] = _variables(self.axes[name])
                read = [t.numel() for t in tree_leaves(step.args) if isinstance(t, Tensor)]
                self._elements[name] = max(read, default=0)
        meeting = [_variables(self.axes[name]) for name in self.timed]
        for sizes in assignments(self.lowest, meeting):
            for name, milliseconds in self._times(sizes).items():
                place = self._position(name, sizes)
                self.timed[name].add(place, milliseconds, grid=True)
        self.table.save()

    def _timeable(self, step: Step) -> bool:
        if self.runtime == "onnxruntime":
            return exported(step)
        return self.runtime == "torch" or op_name(step.node.target).endswith(CONTRACTIONS)

    def _times(self, sizes: Sizes) -> dict[str, float]:
        """Milliseconds of every timed op at some sizes, measured where the table lacks one."""
        stepper = self._stepper(sizes)
        signatures: dict[str, str] = {}
        for step in stepper.steps():
            name = step.node.name
            if name in self.timed:
                signatures[name] = step.signature
                if self.runtime == "onnxruntime" and self.table.get(step.signature) is None:
                    self.table.put(step.signature, onnx_milliseconds(step, stepper.device))
        if any(self.table.get(text) is None for text in signatures.values()):
            measured: dict[str, list[float]] = {}
            for name, milliseconds in self._run(stepper, frozenset(signatures)).items():
                measured.setdefault(signatures[name], []).append(milliseconds)
            for text, found in measured.items():
                if self.table.get(text) is None:
                    self.table.put(text, statistics.median(found))
        return {name: self.table.get(text) or 0.0 for name, text in signatures.items()}

    def _run(self, stepper: Stepper, names: frozenset[str]) -> dict[str, float]:
        nodes = [n for n in stepper.calls if n.name in names]
        start = time.perf_counter()
        runs: list[dict[fx.Node, float]] = []
        while len(runs) < RUNS:
            if len(runs) >= FEWEST and time.perf_counter() - start > SECONDS:
                break
            runs.append(stepper.times(nodes))
        return {n.name: statistics.median(run[n] for run in runs) for n in nodes}

    def _stepper(self, sizes: Sizes) -> Stepper:
        kept = {v: torch.arange(size) for v, size in sizes.items() if size < v.size}
        program = rewrite(self.graph, kept) if kept else self.graph.program
        return Stepper(program, self.inputs)

    def _position(self, name: str, sizes: Sizes) -> tuple[float, ...]:
        return tuple(axis.position(sizes) for axis in self.axes[name])

    def _places(self, name: str) -> list[str]:
        """Which of an op's widths each of its axes goes by, and from which size on."""
        axes = self.axes[name]
        found = [
            str([i for i, axis in enumerate(axes) if set(axis.variables) & set(variables(term))])
            for term in _terms(self.graph, self.nodes[name])
        ]
        return [*found, *(str([self.lowest[v] for v in axis.variables]) for axis in axes)]

    def _made(self, name: str, each: float, sizes: Sizes) -> float:
        known = dict(sizes)
        terms = self.graph.inference.terms.get(self.nodes[name])
        terms = terms if isinstance(terms, list) else []
        share = math.prod(width_of(t, known) / max(t.size or 1, 1) for t in terms)
        return each * self._elements[name] * share


def _terms(graph: Graph, node: fx.Node) -> list[Term]:
    """The terms with variables among those of the axes that a node reads and makes."""
    found: list[Term] = []
    for own in (*node.all_input_nodes, node):
        terms = graph.inference.terms.get(own)
        groups = terms if isinstance(terms, tuple) else (terms,)
        listed = [term for group in groups if isinstance(group, list) for term in group]
        found += [term for term in listed if variables(term)]
    return found


def _variables(axes: list[Axis]) -> frozenset[Var]:
    return frozenset(v for axis in axes for v in axis.variables)


def _price(axes: list[Axis], curve: Curve, sizes: Sizes) -> float:
    return curve.at(tuple(axis.position(sizes) for axis in axes))
