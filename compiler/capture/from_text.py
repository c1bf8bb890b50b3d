"""A module from the text of a program, as `Graph.text()` prints it; weights are drawn."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CaptureError
from ..inference.text import dtype_word

_DTYPES = {dtype_word(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}
_DECLARED = re.compile(r"\s*(\S+): (\w+)\[(.*)\]")
_CALL = re.compile(r"\s*(%\d+) = ([\w:.]+)\((.*?)\)(?:  .*)?")
_SIZED = re.compile(r"[^\s,()|*\[\]]+\((\d+)\)")
_WORDS = {"None": None, "True": True, "False": False}


def module_from_text(text: str, seed: int = 0) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The module, in eval mode, and inputs of the shapes that the text gives.

    Raises CaptureError naming the line that is none of a program's.
    """
    return _Reader(torch.Generator().manual_seed(seed)).read(text)


class _Reader:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.root, self.graph = nn.Module(), fx.Graph()
        self.tensors: set[str] = set()
        self.values: dict[str, Any] = {}
        self.inputs: list[Tensor] = []

    def read(self, text: str) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
        section = ""
        for line in text.splitlines():
            if line.strip() in ("inputs", "tensors", "graph"):
                section = line.strip()
            elif line.strip():
                try:
                    self._line(section, line)
                except (AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
                    raise CaptureError(f"no line of a program: {line.strip()!r}") from error
        module = fx.GraphModule(self.root, self.graph)
        return module.eval(), tuple(self.inputs)

    def _line(self, section: str, line: str) -> None:
        if section != "graph":
            name, word, axes = _match(_DECLARED, line)
            tensor = self._drawn(name, _DTYPES[word], _sizes(axes))
            if section == "inputs":
                self.inputs.append(tensor)
                self.values[name] = self.graph.placeholder(f"x{name[1:]}")
            else:
                self._register(name, tensor)
        elif line.strip().startswith("return "):
            results = self._argument(line.strip().removeprefix("return "))
            self.graph.output(results[0] if len(results) == 1 else tuple(results))
        else:
            label, op, arguments = _match(_CALL, line)
            args, kwargs = [], {}
            for part in _parts(arguments):
                name, equals, value = part.partition("=")
                if equals:
                    kwargs[name] = self._argument(value)
                else:
                    args.append(self._argument(part))
            self.values[label] = self.graph.call_function(_operator(op), tuple(args), kwargs)

    def _argument(self, text: str) -> Any:
        if text.startswith("["):
            return [self._argument(part) for part in _parts(text[1:-1])]
        if text in self.tensors:
            return self.graph.get_attr(text)
        if text.startswith("%"):
            return self.values[text]
        if text in _WORDS or text in _DTYPES:
            return _WORDS.get(text, _DTYPES.get(text))
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text  # a mode, as of gelu

    def _drawn(self, name: str, dtype: torch.dtype, sizes: list[int]) -> Tensor:
        if not dtype.is_floating_point:
            return torch.randint(0, 2, sizes, generator=self.generator).to(dtype)
        if name.endswith("running_var"):
            return torch.rand(sizes, generator=self.generator, dtype=dtype) + 0.5
        return torch.randn(sizes, generator=self.generator).to(dtype)

    def _register(self, name: str, tensor: Tensor) -> None:
        owner = self.root
        *path, leaf = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if tensor.is_floating_point() and not leaf.startswith("running_"):
            owner.register_parameter(leaf, nn.Parameter(tensor))
        else:
            owner.register_buffer(leaf, tensor)
        self.tensors.add(name)


def _match(pattern: re.Pattern[str], line: str) -> tuple[str, ...]:
    found = pattern.fullmatch(line)
    if found is None:
        raise ValueError(line)
    return found.groups()


def _sizes(axes: str) -> list[int]:
    """`up:hidden(16), 8, (a(2)*b(3)|6)` -> [16, 8, 12]."""
    plain = _SIZED.sub(r"\1", axes).replace("|", "+")
    tree = ast.parse(f"[{plain}]", mode="eval").body
    assert isinstance(tree, ast.List)
    return [_number(x) for x in tree.elts]


def _number(tree: ast.AST) -> int:
    if isinstance(tree, ast.BinOp):
        pair = _number(tree.left), _number(tree.right)
        return pair[0] * pair[1] if isinstance(tree.op, ast.Mult) else pair[0] + pair[1]
    assert isinstance(tree, ast.Constant)
    return int(tree.value)  # type: ignore[arg-type]


def _parts(text: str) -> Iterator[str]:
    """What commas outside of brackets and quotes separate."""
    depth, start, quoted = 0, 0, False
    for i, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0 and not quoted:
            yield text[start:i].strip()
            start = i + 1
    if text[start:].strip():
        yield text[start:].strip()


def _operator(name: str) -> Any:
    if name == "getitem":
        return operator.getitem
    space, _, rest = name.rpartition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, space or "aten"), packet), overload or "default")
