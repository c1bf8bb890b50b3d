"""What must hold of a compilation after every pass, whatever the pass did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..capture.quiet_meta import quiet_meta
from ..errors import VerificationError
from ..inference.graph import Graph
from ..ir.program import Program, output_values, shape_of, source_line
from ..ir.terms import Var, variables
from ..rewrite.slicing import Kept, kept_size
from .difference import difference
from .interpreter import ProgramInterpreter, TensorHook

SAME = 1e-6  # the same arithmetic: threads may sum in another order


def check_structure(graph: Graph, dense: Program, kept: Kept) -> None:
    """Re-propagate shapes through the dense program and compare them, node by node, with what the
    terms say; the outputs must have the original's shapes and dtypes.

    Runs on fake tensors: no arithmetic. Raises VerificationError naming the node, and the cut
    dimensions that meet there.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake.from_tensor(x) if isinstance(x, Tensor) else x for x in dense.flat_inputs()]
    run = _ShapeRun(graph, dense, kept, lambda _, t: fake.from_tensor(t, static_shapes=True))
    try:
        with quiet_meta(), fake:
            outputs = run(inputs)
    except VerificationError:
        raise
    except Exception as error:
        if "DataDependent" in type(error).__name__ or "DynamicOutput" in type(error).__name__:
            return  # shapes that depend on values: the oracles run on real ones
        reason = str(error).strip().splitlines()[0]
        raise VerificationError(
            f"the dense graph does not run at {run.place()}: {reason}."
        ) from error
    _compare_outputs(graph.program, outputs)


def check_same(dense: Program, proven: Program, inputs: Sequence[Any]) -> None:
    """Raise VerificationError unless the program that was made gives what the one that was
    proven gives."""
    if dense.is_meta:
        return
    found, expected = ProgramInterpreter(dense), ProgramInterpreter(proven)
    error = difference(found(inputs), expected(inputs)).whole
    if error > SAME:
        raise VerificationError(
            f"the dense graph differs from the proven one by {error:.2e}; nothing was written."
        )


class _ShapeRun(ProgramInterpreter):
    """Runs the dense program and compares each shape with the terms of the original node."""

    def __init__(self, graph: Graph, dense: Program, kept: Kept, hook: TensorHook) -> None:
        super().__init__(dense, tensor_hook=hook)
        self.source, self.kept = graph, kept
        self.originals = {n.name: n for n in graph.program.graph.nodes}
        self.expected = {n.name: self._widths(n) for n in graph.program.graph.nodes}
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        value = super().run_node(n)
        expected = self.expected.get(n.name)
        if n.op == "call_function" and isinstance(value, Tensor) and expected is not None:
            agree = [e is None or e == s for e, s in zip(expected, value.shape, strict=False)]
            if len(expected) != value.dim() or not all(agree):
                raise VerificationError(
                    f"the dense graph is inconsistent at {self.place()}: it yields shape "
                    f"{list(value.shape)} where its terms say {expected}."
                )
        return value

    def _widths(self, original: fx.Node) -> list[int | None] | None:
        """The sizes that the terms of a node's result have now."""
        terms = self.source.inference.terms.get(original)
        if not isinstance(terms, list):
            return None
        if original in self.source.inference.generated:
            return [t.size for t in terms]
        return [None if t.size is None else kept_size(t, self.kept) for t in terms]

    def place(self) -> str:
        """The present node, the user's line, and the cut dimensions that meet there."""
        original = self.originals.get(self.node.name) if self.node is not None else None
        if original is None:
            return f"node {self.node}"
        met = set(_carried(self.source.inference.terms, [original, *original.all_input_nodes]))
        names = [d.name for d in self.source.prunable.values() if d.var in met & set(self.kept)]
        line = source_line(original)
        where = f"node {original.name}" + (f", {line}," if line else "")
        return f"{where} of dimension {', '.join(map(repr, names))}" if names else where


def _carried(terms: dict[fx.Node, Any], nodes: Iterable[fx.Node]) -> Iterator[Var]:
    for node in nodes:
        found = terms.get(node)
        for axes in found if isinstance(found, tuple) else (found,):
            for term in axes if isinstance(axes, list) else ():
                yield from variables(term)


def _compare_outputs(program: Program, outputs: list[Any]) -> None:
    node = next(n for n in program.graph.nodes if n.op == "output")
    for x, found in zip(output_values(node.args[0]), outputs, strict=True):
        expected = x.meta.get("val") if isinstance(x, fx.Node) else None
        if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
            continue
        if found.dtype != expected.dtype or list(found.shape) != shape_of(expected):
            raise VerificationError(
                f"output {x.name} has shape {list(found.shape)} and {found.dtype}; the "
                f"original's is {shape_of(expected)} and {expected.dtype}."
            )


def check_finite(model: torch.nn.Module) -> None:
    """Raise VerificationError when a parameter holds a NaN or an infinity."""
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise VerificationError(
                f"parameter '{name}' holds non-finite values; lower the learning rate, or check "
                "the training data."
            )
