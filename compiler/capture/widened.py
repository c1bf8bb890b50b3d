"""A batch of one: captured from several rows where the model then holds for one, too."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..errors import CaptureError
from ..inference.rule import op_name
from ..ir.program import Program, fake_value, is_symbolic, output_values
from .batch import batch_size
from .examples import copied_call, widen
from .export import export
from .program import program_of
from .untouched import copy_on_write, untouched

Call = tuple[tuple[Any, ...], dict[str, Any]]

TOLERANCE = 1e-2  # relative; another branch or another row differs by more


def program_for(model: nn.Module, call: Call, dynamic_shapes: Any) -> Program:
    """The program of a call. export fixes a batch of 1, so such a call is captured with its row
    repeated; that stands where the batch came out dynamic and the program does on the call itself
    what the model does. Else the call is captured as it is. Raises CaptureError."""
    if dynamic_shapes is None and batch_size(*call) == 1:
        wide = widen(*call)
        try:
            exported, how = export(model, *wide, only_dynamic=True)
            program = program_of(model, exported, *wide, how)
        except CaptureError:
            program = None
        if program is not None and program.batched and _agree(program, model, call):
            program.given = call
            return program
    exported, how = export(model, *call, dynamic_shapes)
    return program_of(model, exported, *call, how)


def _agree(program: Program, model: nn.Module, call: Call) -> bool:
    """Whether the program gives what the model gives on a call; draws from the random state."""
    if any(map(_squeezes_rows, program.graph.nodes)):
        return False  # an axis that is there with several rows only
    if program.is_meta:
        return True
    try:
        with torch.no_grad(), untouched(model), copy_on_write(model):
            args, kwargs = copied_call(*call)
            torch.manual_seed(0)
            expected = pytree.tree_leaves(model(*args, **kwargs))
        with torch.no_grad():
            torch.manual_seed(0)
            flat = pytree.tree_leaves(copied_call(*call))
            found = output_values(_Run(program).run(*flat, enable_io_processing=False))
    except Exception:  # whatever a graph or a model raises at this size
        return False
    return len(found) == len(expected) and all(map(_close, found, expected))


def _squeezes_rows(node: fx.Node) -> bool:
    """Whether a node takes away an axis, should it be 1, whose size was left dynamic."""
    name = op_name(node.target) if node.op == "call_function" else ""
    axes = node.args[1] if name == "aten::squeeze" and len(node.args) > 1 else ()
    shape = fake_value(node.args[0]).shape if axes != () else ()  # type: ignore[arg-type]
    return any(is_symbolic(shape[axis]) for axis in ([axes] if isinstance(axes, int) else axes))  # type: ignore[union-attr,index]


def _close(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return True  # sizes and flags may be of the rows
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return True
    a, b = found.double().nan_to_num(), expected.double().nan_to_num()
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


class _Run(fx.Interpreter):
    """A program on the tensors themselves; those it writes to are copied."""

    def __init__(self, program: Program) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self.program = program

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        tensor = self.program.tensors.get(str(target))
        if tensor is None:
            return self.program.bodies[str(target)]
        return tensor.clone() if not isinstance(tensor, nn.Parameter) else tensor.detach()
