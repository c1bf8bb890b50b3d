"""The captured program: a torch.fx graph of ATen calls, its tensors by name, its call signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..errors import InputError
from .call_spec import CallSpec


@dataclasses.dataclass
class Program:
    """A graph of ATen calls with everything needed to run it.

    `graph`: placeholders are the flat inputs, `get_attr` targets are keys of `tensors`, the output
    node holds a flat tuple. `tensors`: parameters, buffers and lifted constants by their fully
    qualified name in the model; tied weights occur once. `aliases`: for a name in `tensors`, the
    other names of the same tensor in the model. `bodies`: sub-graphs of higher-order ops that were
    not inlined, by get_attr target. `dynamic`: some axis of an input is; `batched`: the call can be
    taken at another batch size; `call`: for which sizes and constants the graph holds. `given`:
    the user's own call, where rows were added to capture it.
    `selection`: with `outputs=`, which of the model's flat outputs the program returns.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    aliases: dict[str, tuple[str, ...]]
    source: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    argument_names: list[str]
    bodies: dict[str, nn.Module] = dataclasses.field(default_factory=dict)
    selection: list[int] | None = None
    dynamic: bool = False
    batched: bool = False
    call: CallSpec | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    how: str = "torch.export"
    notes: list[str] = dataclasses.field(default_factory=list)

    def flat_inputs(
        self,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        check: bool = True,
    ) -> list[Any]:
        """The placeholders' values for a call; the example inputs when no call is given.

        Arguments may be given by position or by name, whichever way they were captured; flags that
        are left out take their captured value. Raises InputError naming what is missing or unknown,
        and, with `check`, CallError for a call that the graph was not captured for.
        """
        if args is None and kwargs is None:
            return pytree.tree_leaves((self.args, self.kwargs))
        captured = dict(zip(self.argument_names, (*self.args, *self.kwargs.values()), strict=False))
        given = dict(zip(self.argument_names, args or (), strict=False)) | (kwargs or {})
        unknown = [name for name in given if name not in captured]
        if unknown or len(args or ()) > len(self.argument_names):
            extra = unknown[0] if unknown else f"argument {len(self.argument_names) + 1}"
            raise InputError(
                f"the model was captured without '{extra}'; it takes {', '.join(captured)}."
            )
        for name, value in captured.items():
            leaves = pytree.tree_leaves(value)
            if name not in given and any(isinstance(leaf, Tensor) for leaf in leaves):
                raise InputError(
                    f"the call leaves out '{name}', with which the model was captured."
                )
        values = [given.get(name, value) for name, value in captured.items()]
        count = len(self.args)
        call = tuple(values[:count]), dict(zip(self.kwargs, values[count:], strict=True))
        flat, spec = pytree.tree_flatten(call)
        if spec.num_leaves != self.in_spec.num_leaves:
            raise InputError("the call's arguments are nested otherwise than the captured ones.")
        if check:
            self.check(flat)
        return flat

    def admits(self, flat: Sequence[Any]) -> bool:
        """Whether the flat inputs are of a call that the graph was captured for."""
        return self.call is None or self.call.admits(flat)

    def check(self, flat: Sequence[Any]) -> None:
        """Raise CallError where the flat inputs are none that the graph was captured for."""
        if self.call is not None:
            self.call.check(flat)

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as the user gave it."""
        return self.given or (self.args, self.kwargs)

    @property
    def is_meta(self) -> bool:
        """Whether the weights have no values: such a model is planned and rewritten only."""
        return any(t.device.type == "meta" for t in self.tensors.values())

    def device(self) -> torch.device:
        """The device of the program: that of its first tensor, else of its first tensor input."""
        for t in (*self.tensors.values(), *pytree.tree_leaves((self.args, self.kwargs))):
            if isinstance(t, Tensor):
                return t.device
        return torch.device("cpu")


def output_values(node_value: Any) -> list[Any]:
    """The flat output values a program's output node carries."""
    return list(node_value) if isinstance(node_value, (tuple, list)) else [node_value]


def fake_value(node: fx.Node) -> Any:
    """What the node yields: a fake tensor (shape, dtype, device), a SymInt, a tuple of them."""
    return node.meta.get("val")


def hint(size: Any) -> int | None:
    """The integer a symbolic size had at capture; None when it depends on data."""
    if isinstance(size, int):
        return size
    node = getattr(size, "node", None)
    try:
        value = node.maybe_as_int() if node is not None else None
        value = node.hint if node is not None and value is None else value
    except Exception:  # an unbacked symbol has no hint, and torch says so by raising
        return None
    return int(value) if value is not None else None


def shape_of(value: Any) -> list[int | None]:
    """The hinted shape of a fake tensor."""
    return [hint(s) for s in value.shape]


def is_symbolic(size: Any) -> bool:
    """Whether a size was left dynamic by capture (and not specialised to a number)."""
    if isinstance(size, int):
        return False
    node = getattr(size, "node", None)
    return node is None or node.maybe_as_int() is None


def source_line(node: fx.Node) -> str:
    """`file.py:12` of the user's line that made the node: the last frame outside torch."""
    trace = node.meta.get("stack_trace") or ""
    found = ""
    for line in trace.splitlines():
        line = line.strip()
        if line.startswith('File "') and '", line ' in line:
            path, _, rest = line[6:].partition('", line ')
            if "/torch/" in path or path.startswith("torch/"):
                continue
            found = f"{path.rsplit('/', 1)[-1]}:{rest.split(',')[0]}"
    return found


def module_path(node: fx.Node) -> str:
    """The dotted name of the innermost module the node ran in; '' for the top."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        if isinstance(entry, tuple) and isinstance(entry[0], str):
            path = entry[0]
    return "" if path.startswith("_empty_nn_module_stack") else path.split("@")[0]
