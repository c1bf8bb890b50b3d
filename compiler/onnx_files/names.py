"""Names of ONNX inputs and outputs: the argument's, and the path in the result."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ExportError
from ..ir.key_paths import leaves_with_path


def bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by parameter name; `**kwargs` is one entry, as torch.export has it.

    Raises:
        ExportError: the arguments do not fit `model.forward`.
    """
    try:
        return inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ExportError(f"The example inputs do not fit the model's forward: {error}.") from error


def in_order(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` in the order of forward's parameters, which is the order of the exported inputs."""
    bind(model, args, kwargs)
    order = {name: i for i, name in enumerate(inspect.signature(model.forward).parameters)}
    return dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))


def input_tensors(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """The tensors of a call by ONNX input name, in the exporter's order.

    A tensor argument has the argument's name; one inside a list, tuple or dict has its index or
    key appended ("masks_0").
    """
    arguments = dict(bind(model, args, in_order(model, args, kwargs)))
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return {
        "_".join((argument, *path)): leaf
        for argument, value in arguments.items()
        for path, leaf in _leaves(value)
        if isinstance(leaf, Tensor)
    }


def output_tensors(result: Any) -> dict[str, Tensor]:
    """The tensors of a model's result by ONNX output name; None is left out.

    A bare tensor is "output", items of a tuple are "output_0", "output_1", those of a dict or a
    ModelOutput have their key.

    Raises:
        ExportError: the result holds something that is neither a tensor nor None.
    """
    named: dict[str, Tensor] = {}
    for path, leaf in _leaves(result):
        if leaf is None:
            continue
        name = "_".join(path)
        if not isinstance(leaf, Tensor):
            raise ExportError(
                f"The model returns a value of type {type(leaf).__name__}, which ONNX cannot hold:"
                " return tensors only, or choose outputs at capture (outputs=)."
            )
        if not name[:1].isalpha():
            name = f"output_{name}" if name else "output"
        named[_free(name, named)] = leaf
    if not named:
        raise ExportError("The model returns no tensor: an ONNX file needs at least one output.")
    return named


def rename(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give an onnx_ir model's inputs and outputs these names, moving others out of their way.

    An output whose name an input has is renamed "NAME_out": in ONNX one name is one value.

    Raises:
        ExportError: the exported graph has another number of inputs or outputs.
    """
    graph = model.graph
    for what, values, names in (
        ("inputs", graph.inputs, inputs),
        ("outputs", graph.outputs, outputs),
    ):
        if len(values) != len(names):
            raise ExportError(
                f"The exporter gave the graph {len(values)} {what} where the call has {len(names)}:"
                " pass each tensor once, and no objects that hide tensors."
            )
    final = list(inputs)
    for name in outputs:
        final.append(_free(name if name not in inputs else f"{name}_out", final))
    ends = [*graph.inputs, *graph.outputs]
    inner = {v.name: v for node in graph.all_nodes() for v in node.outputs if v.name}
    inner |= dict(graph.initializers)
    taken = {*inner, *final}
    for name, value in inner.items():
        if name in final and not any(value is end for end in ends):
            value.name = _free(f"{name}_value", taken)
            taken.add(value.name)
    for value, name in zip(ends, final, strict=True):
        value.name = name


def name_axes(model: Any, names: Sequence[Mapping[int, str]]) -> None:
    """Give the symbols of an onnx_ir model's input shapes these names, by input and axis, wherever
    they occur: the exporter keeps its own where an argument is no tensor."""
    import onnx_ir

    graph, new = model.graph, dict[str, str]()
    for value, own in zip(graph.inputs, names, strict=True):
        for axis, name in own.items():
            symbol = getattr(value.shape[axis], "value", None) if value.shape is not None else None
            if symbol is not None and symbol != name:
                new[symbol] = name
    if not new:
        return
    symbols = re.compile(r"\b(" + "|".join(map(re.escape, new)) + r")\b")
    inner = [v for node in graph.all_nodes() for v in node.outputs]
    for value in {id(v): v for v in (*graph.inputs, *graph.outputs, *inner)}.values():
        for axis, size in enumerate(value.shape or ()):
            symbol = getattr(size, "value", None)
            if symbol is not None:
                named = symbols.sub(lambda found: new[found[1]], symbol)
                value.shape[axis] = onnx_ir.SymbolicDim(named)


def _leaves(value: Any) -> list[tuple[list[str], Any]]:
    return [([str(key) for key in path], leaf) for path, leaf in leaves_with_path(value)]


def _free(name: str, taken: Any) -> str:
    candidates = itertools.chain((name,), (f"{name}_{i}" for i in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in taken)
