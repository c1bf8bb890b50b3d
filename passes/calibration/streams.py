"""Programs run node by node on many batches at once, so that weights may change on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.ir.program import Program
from ...compiler.verify.interpreter import ProgramInterpreter, full_precision


class Stream(ProgramInterpreter):
    """A program that stands at the same node for every batch.

    Between two stops each batch runs on its own and leaves only what later nodes read, so memory is
    that of the values alive at a stop, for all batches, and of one batch in flight. Tensors are
    fetched at each use: what is changed in `program.tensors` holds from there on. Gradients and
    TF32 are the caller's to switch off (`measuring`).
    """

    def __init__(self, program: Program, batches: Sequence[Sequence[Any]]) -> None:
        super().__init__(program)
        self.nodes = list(program.graph.nodes)
        self.by_name = {node.name: node for node in self.nodes}
        self._place = {node: i for i, node in enumerate(self.nodes)}
        self._position = 0
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        self._batches: list[tuple[dict[fx.Node, Any], dict[Any, Tensor]]] = [
            # in-place ops may write to inputs: those stay the caller's
            ({n: _own(x) for n, x in zip(inputs, flat, strict=True)}, {})
            for flat in batches
        ]

    def passed(self, node: fx.Node) -> bool:
        """Whether the node has run."""
        return self._place[node] < self._position

    def advance(self, node: fx.Node, through: bool = False) -> None:
        """Run every batch up to the node; `through`: and the node itself."""
        stop = self._place[node] + int(through)
        for batch in range(len(self._batches)):
            self.turn_to(batch)
            for current in self.nodes[self._position : stop]:
                self._step(current)
        self._position = max(self._position, stop)

    def turn_to(self, batch: int) -> None:
        """From here on `value_of` and `run_node` are of this batch."""
        self.env, self._copies = self._batches[batch]

    def _step(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "get_attr", "output"):
            return
        value = self.run_node(node)
        if node.users:
            self.env[node] = value
        for done in self.user_to_last_uses.get(node, ()):
            self.env.pop(done, None)

    def held_bytes(self) -> int:
        """The bytes of all values alive, a memory shared by several counted once."""
        storages = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for env, _ in self._batches
            for value in env.values()
            if isinstance(value, Tensor)
        }
        return sum(storages.values())


def _own(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """No gradients, no TF32, and random ops that draw the same numbers at each run."""
    with torch.no_grad(), full_precision(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
