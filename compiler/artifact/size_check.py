"""A stored graph run without data, before its tensors are read: no size in it may ask for more
memory than its stored tensors and its inputs account for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ..emit.row_values import DTYPES, INTEGER_LIMIT, refused
from .manifest import example_value, is_tensor

FLOOR = 2**28  # elements that any graph's largest value may have
SHARE = 256  # and as many for each element that is stored or given
_POWERS = (operator.pow, operator.lshift)
_EXPONENT = 64


class _Unknown:
    """The value of what cannot be run without data."""


UNKNOWN = _Unknown()


def check_sizes(module: fx.GraphModule, example: Sequence[Any]) -> None:
    """Run a graph whose tensors are on meta, on inputs of the example's shapes.

    Where an operator needs values (nonzero, item) or has no meta kernel, what depends on it is
    known by its literal sizes alone. Raises ArtifactError for a value that is too large, and where
    the graph does not run at all.
    """
    inputs = [_input(entry) for entry in example]
    given = [x for x in inputs if isinstance(x, Tensor)]
    stored = {id(t): t for t in (*module.parameters(), *module.buffers())}
    total = sum(t.numel() for t in (*stored.values(), *given))
    with torch.no_grad():
        _Run(FLOOR + SHARE * total).run(module, inputs)


def _input(entry: Any) -> Any:
    if is_tensor(entry):
        return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
    return example_value(entry)


class _Run:
    """One run. `casts`: inside of an autocast region, which meta tensors do not follow."""

    def __init__(self, limit: int, casts: bool = False) -> None:
        self.limit = limit
        self.casts = casts

    def run(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """The values of a graph's output."""
        values: dict[fx.Node, Any] = {}
        last = _last_uses(module.graph)
        given = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given, UNKNOWN)
            elif node.op == "get_attr":
                values[node] = _attribute(module, str(node.target))
            else:
                args, kwargs = map_aggregate((node.args, dict(node.kwargs)), _reader(values))  # type: ignore[misc]
                if node.op == "output":
                    return args[0]
                values[node] = self._value(module, node, args, kwargs)
                self._check(node, values[node])
            for dead in last.get(node, ()):
                del values[dead]
        return None

    def _value(
        self, module: fx.GraphModule, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._check_literals(node)
        _check_lists(node.target, args)
        leaves: list[Any] = []
        map_aggregate((args, kwargs), lambda x: leaves.append(x) or x)  # type: ignore[arg-type,func-returns-value]
        if node.target in _POWERS and not _small_power(args):
            raise refused("a power of that size")
        if any(leaf is UNKNOWN for leaf in leaves) or "_assert" in str(node.target):
            return UNKNOWN
        bodies = [x for x in leaves if isinstance(x, fx.GraphModule)]
        try:
            if bodies:
                return self._run_bodies(node, bodies, args)
            if node.op == "call_module":
                return _attribute(module, str(node.target))(*args, **kwargs)
            return node.target(*args, **_on_meta(node.target, kwargs))  # type: ignore[operator]
        except NotImplementedError:
            return UNKNOWN
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            if self.casts or _needs_values(node.target):
                return UNKNOWN
            said = (str(error).splitlines() or [""])[0]
            raise refused(f"a call of {node.target} that does not run ({said[:200]})") from error

    def _run_bodies(
        self, node: fx.Node, bodies: Sequence[fx.GraphModule], args: tuple[Any, ...]
    ) -> Any:
        """Each sub-graph on the operands that come after the last one."""
        operands: list[Any] = []
        following = args[max(i for i, x in enumerate(args) if isinstance(x, fx.GraphModule)) + 1 :]
        for x in following:
            operands.extend(x if isinstance(x, (list, tuple)) else [x])
        inner = _Run(self.limit, self.casts or "autocast" in str(node.target))
        results = []
        for body in bodies:
            count = sum(n.op == "placeholder" for n in body.graph.nodes)
            if count > len(operands):
                return UNKNOWN  # scan and map cut their operands
            results.append(inner.run(body, operands[:count]))
        return results[-1]

    def _check(self, node: fx.Node, value: Any) -> None:
        def each(x: Any) -> Any:
            if isinstance(x, Tensor) and x.numel() > self.limit:
                raise refused(f"a value of {x.numel():,} elements ({node.target})")
            if isinstance(x, int) and abs(x) >= INTEGER_LIMIT:
                raise refused("a number of that size")
            return x

        map_aggregate(value if isinstance(value, (tuple, list)) else (value,), each)

    def _check_literals(self, node: fx.Node) -> None:
        """Sizes that stand in the graph, of values that may turn out unknown."""
        for argument in (*node.args, *node.kwargs.values()):
            if isinstance(argument, (list, tuple)):
                count = 1
                for x in argument:
                    count *= max(x, 1) if type(x) is int else 1
                    if type(x) is int and abs(x) != INTEGER_LIMIT - 1 and count > 2**40:
                        raise refused(f"sizes of {count:,} elements ({node.target})")


def _reader(values: Mapping[fx.Node, Any]) -> Any:
    device = torch.device("meta")

    def read(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return values[x]
        return device if isinstance(x, torch.device) else x

    return read


def _on_meta(target: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What makes a tensor from nothing makes it on meta."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return kwargs
    takes = any("Tensor" in str(argument.type) for argument in schema.arguments)
    if not takes and any(argument.name == "device" for argument in schema.arguments):
        return {**kwargs, "device": torch.device("meta")}
    return kwargs


def _check_lists(target: Any, args: tuple[Any, ...]) -> None:
    """What an op takes as a list of tensors holds nothing else; `index` has no run on meta that
    would tell."""
    schema = getattr(target, "_schema", None)
    for argument, given in zip(schema.arguments if schema is not None else (), args, strict=False):
        if isinstance(given, (list, tuple)) and "Tensor" in str(argument.type):
            for x in given:
                if x is not None and x is not UNKNOWN and not isinstance(x, Tensor):
                    raise refused(f"a {type(x).__name__} among the tensors of {target}")


def _small_power(args: tuple[Any, ...]) -> bool:
    """Whether a power of integers is one that a size may be."""
    if any(isinstance(x, float) for x in args):
        return True
    if len(args) != 2 or not all(isinstance(x, int) for x in args):
        return False
    base, exponent = args
    return abs(exponent) <= _EXPONENT and abs(base) < 2**32


def _needs_values(target: Any) -> bool:
    """Whether an op's result depends on its operands' values, which meta tensors lack."""
    tags = getattr(target, "tags", ())
    return any(
        tag in tags for tag in (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    )


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The nodes whose value nobody reads after each node."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        reader = max(node.users, key=order.__getitem__, default=node)
        found.setdefault(reader, []).append(node)
    return found
