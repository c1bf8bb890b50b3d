"""A program with its terms as text: the same for the same graph, whatever its nodes are called.

    inputs
      %0: f32[3, 8]
    tensors
      up.weight: f32[up:hidden(16), 8]
    graph
      %1 = linear(%0, up.weight, up.bias)  f32[3, up:hidden(16)]
      return %1

An axis is a dimension with its size (and how many of it a plan keeps, `(16->8)`), a fixed size,
factors `a(2)*b(3)`, parts `(a(2)|b(3))`, or entries `a(6)[4]` taken by an index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.program import Program, fake_value, hint, shape_of
from ..ir.terms import Concat, Fixed, Indexed, Product, Term, Var, resolve
from .rule import op_name

_KINDS = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def program_text(
    program: Program,
    tensors: Mapping[str, list[Term]] | None = None,
    values: Mapping[fx.Node, Any] | None = None,
    names: Mapping[Var, str] | None = None,
    kept: Mapping[Var, int] | None = None,
) -> str:
    """The text of a program. `tensors`, `values`: the terms of its tensors and of what its nodes
    yield; without them the sizes of tensors. `names`: of the dimensions.
    `kept`: how many entries of a dimension are planned to stay."""
    return _Printer(program, tensors or {}, values, names or {}, kept or {}).text()


class _Printer:
    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, list[Term]],
        values: Mapping[fx.Node, Any] | None,
        names: Mapping[Var, str],
        kept: Mapping[Var, int],
    ) -> None:
        self.program, self.tensors, self.values = program, tensors, values
        self.names, self.kept = names, kept
        self.labels: dict[fx.Node, str] = {}

    def text(self) -> str:
        inputs, lines, read = [], [], {}
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                self.labels[node] = str(node.target)
                continue
            read |= {self.labels[x]: None for x in node.all_input_nodes if x.op == "get_attr"}
            label = self.labels[node] = f"%{sum(x.startswith('%') for x in self.labels.values())}"
            if node.op == "placeholder":
                inputs.append(f"  {label}: {self._value(node)}")
            elif node.op == "output":
                lines.append(f"  return {self._argument(node.args[0])}")
            else:
                call = f"{_operator(node.target)}({self._arguments(node)})"
                lines.append(f"  {label} = {call}  {self._value(node)}".rstrip())
        held = [f"  {name}: {self._tensor(name)}" for name in read if name in self.program.tensors]
        return "\n".join(["inputs", *inputs, "tensors", *held, "graph", *lines])

    def _tensor(self, name: str) -> str:
        tensor = self.program.tensors[name]
        return _typed(tensor.dtype, self._axes(list(tensor.shape), self.tensors.get(name)))

    def _value(self, node: fx.Node) -> str:
        if self.values is None:  # nodes that were rewritten tell the shapes of before
            return self._shown(fake_value(node), None) if node.op == "placeholder" else ""
        return self._shown(fake_value(node), self.values.get(node))

    def _shown(self, value: Any, terms: Any) -> str:
        if isinstance(value, Tensor):
            return _typed(value.dtype, self._axes(shape_of(value), terms))
        if isinstance(value, (tuple, list)):
            each = terms if isinstance(terms, tuple) else [None] * len(value)
            return f"({', '.join(self._shown(v, t) for v, t in zip(value, each, strict=False))})"
        size = hint(value) if isinstance(value, (int, torch.SymInt)) else None
        return "" if size is None else f"int {size}"

    def _axes(self, shape: list[int | None], terms: Any) -> list[str]:
        if not isinstance(terms, list) or len(terms) != len(shape):
            return ["?" if size is None else str(size) for size in shape]
        return [self._term(term) for term in terms]

    def _term(self, term: Term) -> str:
        term = resolve(term)
        if isinstance(term, Var):
            kept = f"->{self.kept[term]}" if term in self.kept else ""
            return f"{self.names.get(term, '?')}({term.size}{kept})"
        if isinstance(term, Product):
            return "*".join(self._term(factor) for factor in term.factors)
        if isinstance(term, Concat):
            return f"({'|'.join(self._term(part) for part in term.parts)})"
        if isinstance(term, Indexed):
            return f"{self._term(term.base)}[{term.size}]"
        assert isinstance(term, Fixed)
        return str(term.size)

    def _arguments(self, node: fx.Node) -> str:
        named = [f"{name}={self._argument(value)}" for name, value in node.kwargs.items()]
        return ", ".join([*map(self._argument, node.args), *named])

    def _argument(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.labels[value]
        if isinstance(value, (tuple, list)):
            return f"[{', '.join(map(self._argument, value))}]"
        if isinstance(value, torch.dtype):
            return dtype_word(value)
        if isinstance(value, str) and not value.isidentifier():
            return repr(value)
        return str(value)


def _operator(target: Any) -> str:
    """`linear`, `add.Tensor`, `mylib::op`: the namespace of torch's own and the default overload
    are left out."""
    name = op_name(target)
    if not name:
        return str(getattr(target, "__name__", target))
    overload = getattr(target, "_overloadname", "default")
    return name.removeprefix("aten::") + (f".{overload}" if overload != "default" else "")


def _typed(dtype: torch.dtype, axes: list[str]) -> str:
    return f"{dtype_word(dtype)}[{', '.join(axes)}]"


def dtype_word(dtype: torch.dtype) -> str:
    """float32 -> f32."""
    name = str(dtype).removeprefix("torch.")
    match = re.fullmatch(r"([a-z]+)(\d+)", name)
    return name if match is None else _KINDS.get(match[1], match[1]) + match[2]
