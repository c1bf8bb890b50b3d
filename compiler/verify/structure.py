"""What must hold of a compilation after every pass, whatever the pass did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..errors import VerificationError
from ..inference.graph import Graph
from ..ir.program import Program, output_values, shape_of
from ..ir.terms import Term
from ..rewrite.slicing import Kept, term_indices
from .interpreter import ProgramInterpreter


def check_structure(graph: Graph, dense: Program, kept: Kept) -> None:
    """Re-propagate shapes through the dense program and compare them, node by node, with what the
    terms say; the outputs must have the original's shapes and dtypes.

    Runs on fake tensors: no arithmetic. Raises VerificationError naming the node.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    originals = {n.name: n for n in graph.program.graph.nodes}
    wrong: list[str] = []

    def compare(node: fx.Node, value: Any) -> Any:
        terms = graph.inference.terms.get(originals.get(node.name))  # type: ignore[arg-type]
        if isinstance(value, Tensor) and isinstance(terms, list) and not wrong:
            generated = originals[node.name] in graph.inference.generated
            expected = [_width(t, kept, generated) for t in terms]
            if any(e is not None and e != s for e, s in zip(expected, value.shape, strict=True)):
                wrong.append(
                    f"node {node.name} yields shape {list(value.shape)} where its terms say "
                    f"{expected}"
                )
        return value

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake.from_tensor(x) if isinstance(x, Tensor) else x for x in dense.flat_inputs()]
    hook = lambda name, t: fake.from_tensor(t, static_shapes=True)  # noqa: E731
    try:
        with fake:
            outputs = ProgramInterpreter(dense, tensor_hook=hook, node_hook=compare)(inputs)
    except VerificationError:
        raise
    except Exception as error:
        if "DataDependent" in type(error).__name__:
            return  # shapes that depend on values: the oracles run on real ones
        if wrong:
            raise VerificationError(f"the dense graph is inconsistent: {wrong[0]}.") from error
        raise VerificationError(
            f"the dense graph does not run: {str(error).strip().splitlines()[0]}."
        ) from error
    if wrong:
        raise VerificationError(f"the dense graph is inconsistent: {wrong[0]}.")
    _compare_outputs(graph.program, outputs)


def _width(term: Term, kept: Kept, generated: bool) -> int | None:
    if term.size is None:
        return None
    return term.size if generated else len(term_indices(term, kept))


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
