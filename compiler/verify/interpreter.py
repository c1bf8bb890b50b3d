"""Runs a program tensor by tensor: each may be masked, permuted or cast as it is used.

No second copy of the model is made: what the interpreter changes lives as long as its use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from ..ir.memory import memory_owners, written
from ..ir.program import Program, output_values

TensorHook = Callable[[str, Tensor], Tensor]
NodeHook = Callable[[fx.Node, Any], Any]


class ProgramInterpreter(fx.Interpreter):
    """Interprets a Program.

    `dtype`: run every floating tensor in this dtype (None: as captured); the graph's own casts to
    floating dtypes follow. `tensor_hook`: applied to each tensor as it is fetched. `node_hook`:
    applied to each call's result.
    """

    def __init__(
        self,
        program: Program,
        *,
        dtype: torch.dtype | None = None,
        tensor_hook: TensorHook | None = None,
        node_hook: NodeHook | None = None,
    ) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self.program = program
        self.dtype = dtype
        self.tensor_hook = tensor_hook
        self.node_hook = node_hook
        self._written = written_tensors(program.graph)
        self._copies: dict[Any, Tensor] = {}

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The flat outputs for flat inputs, without gradients, in full float precision.

        Every run sees the same random numbers: models that draw some (random masking, hashing) are
        compared like any other. Raises CallError for inputs that the program does not hold for.
        """
        self.program.check(inputs)
        inputs = [self._cast(x) for x in inputs]
        with torch.no_grad(), full_precision(), _default_dtype(self.dtype), self._same_numbers():
            # in-place ops may write to inputs and tensors: those stay the caller's
            self._copies.clear()
            fresh = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
            return output_values(self.run(*fresh, enable_io_processing=False))

    @contextlib.contextmanager
    def _same_numbers(self) -> Iterator[None]:
        device = self.program.device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield

    def _cast(self, x: Any) -> Any:
        if self.dtype is not None and isinstance(x, Tensor) and x.is_floating_point():
            return x.to(self.dtype)
        return x

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        tensor = self.program.tensors.get(str(target))
        if tensor is None:
            return self.program.bodies[str(target)]
        if target in self._copies:
            return self._copies[target]
        tensor = tensor.detach()
        if self.tensor_hook is not None:
            tensor = self.tensor_hook(str(target), tensor)
        tensor = self._cast(tensor)
        if target in self._written:  # the model's own memory is never written to
            tensor = self._copies[target] = tensor.clone()
        return tensor

    def value_of(self, node: fx.Node) -> Any:
        """The value of a node that has run. Tensors are fetched at each use: a graph names them
        all at its top, and a masked copy of every weight is more than there is room for."""
        return self.get_attr(node.target, (), {}) if node.op == "get_attr" else self.env[node]

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return map_arg(args, self.value_of)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return None
        result = super().run_node(n)
        if self.node_hook is not None and n.op == "call_function":
            result = self.node_hook(n, result)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.dtype is not None:
            args, kwargs = map_aggregate((args, kwargs), self._dtype_argument)
        return super().call_function(target, args, kwargs)

    def _dtype_argument(self, x: Any) -> Any:
        if isinstance(x, torch.dtype) and x.is_floating_point:
            return self.dtype
        return x


def written_tensors(graph: fx.Graph) -> set[Any]:
    """The tensors that some op of the graph writes to, by name; observers write to several."""
    owners = memory_owners(graph)
    found = (owners[base] for n in graph.nodes for base in written(n))
    return {n.target for n in found if n.op == "get_attr"}


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """TF32 off: comparisons are made in the precision the dtype promises."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    if dtype is not None and dtype.is_floating_point:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
