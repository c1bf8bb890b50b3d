"""Run a program op by op on real inputs, and time each op where it stands.

An op is timed among its neighbours, with their caches and their memory: alone, a convolution whose
result the allocator has at hand can take a tenth of what it takes in the model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from ..inference.rule import op_name
from ..ir.program import Program
from ..verify.interpreter import written_tensors

SIMILAR = ("aten::reshape", "aten::contiguous", "aten::flatten")  # a view or a copy, as it comes


@dataclasses.dataclass(frozen=True)
class Step:
    """An op about to run: its node, with values for its arguments."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def signature(self) -> str:
        """The op with the shapes, dtypes and memory order of its operands, and plain arguments."""
        given = [_text(a) for a in self.args]
        given += [f"{name}={_text(value)}" for name, value in self.kwargs.items()]
        return f"{self.node.target}({','.join(given)})"


class Stepper:
    """A program made ready to be run op by op, always on the same inputs."""

    def __init__(self, program: Program, inputs: Sequence[Any]) -> None:
        self.device = program.device()
        nodes = list(program.graph.nodes)
        self.calls = [n for n in nodes if n.op == "call_function"]
        own = written_tensors(program.graph)
        places = [n for n in nodes if n.op == "placeholder"]
        self._start: dict[fx.Node, Any] = dict(zip(places, map(_copied, inputs), strict=True))
        for n in nodes:
            if n.op == "get_attr":
                tensor = program.tensors.get(str(n.target))
                held = program.bodies.get(str(n.target)) if tensor is None else tensor.detach()
                self._start[n] = _copied(held) if n.target in own else held
        self._dies: dict[fx.Node, list[fx.Node]] = {}
        for n in self.calls:
            last = max(n.users, key=nodes.index, default=n)
            self._dies.setdefault(last, []).append(n)

    def steps(self) -> Iterator[Step]:
        """One run, op by op: each is given before it runs."""
        env = dict(self._start)
        with torch.inference_mode():
            for node in self.calls:
                args, kwargs = _arguments(node, env)
                yield Step(node, args, kwargs)
                env[node] = _target(node)(*args, **kwargs)
                del args, kwargs
                for dead in self._dies.get(node, ()):
                    env.pop(dead, None)

    def times(self, of: Collection[fx.Node]) -> dict[fx.Node, float]:
        """Milliseconds of some ops in one run, with what the memory they free costs."""
        mark, between = _clock(self.device)
        env = dict(self._start)
        marks: dict[fx.Node, tuple[Any, Any]] = {}
        with torch.inference_mode():
            for node in self.calls:
                args, kwargs = _arguments(node, env)
                target, dead = _target(node), self._dies.get(node, ())
                start = mark()
                env[node] = target(*args, **kwargs)
                del args, kwargs
                for gone in dead:
                    env.pop(gone, None)
                if node in of:
                    marks[node] = (start, mark())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {node: between(*pair) for node, pair in marks.items()}


def works(node: fx.Node) -> bool:
    """Whether a node is an op that does work: no view of what it reads."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    viewed = bool(schema.returns) and schema.returns[0].alias_info is not None
    return not viewed or schema.is_mutable or op_name(node.target) in SIMILAR


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """A mark in time, and the milliseconds between two of them. Where one thread does all the
    work its own time is read, which does not run while other programs have the core."""
    if device.type != "cuda":
        read = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        return read, lambda a, b: (b - a) * 1e3

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return mark, lambda a, b: a.elapsed_time(b)


def _arguments(node: fx.Node, env: dict[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_arg((node.args, dict(node.kwargs)), env.__getitem__)  # type: ignore[return-value]


def _target(node: fx.Node) -> Any:
    return node.target


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _text(value: Any) -> str:
    return str(map_aggregate(value, _plain))  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape = ",".join(map(str, value.shape))
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))
    moved = "" if order == sorted(order) else "@" + "".join(map(str, order))
    return f"{str(value.dtype).removeprefix('torch.')}[{shape}]{moved}"
