"""as_strided as what it reads: axes that it leaves alone, and a selection along the others.

Strides speak of memory, which a smaller model lays out otherwise. Where the addresses show that
some axes are untouched, and which entries of the others are read, the node is rewritten so.
"""

from __future__ import annotations

import itertools
from typing import Any

import sympy
import torch
from torch import fx

from ..inference.rule import SELECTION, bound_arguments
from ..ir.memory import memory_owners, written
from ..ir.program import Program, fake_value

LARGEST = 1 << 16  # positions of a selection


def without_strides(program: Program) -> None:
    """Replace every as_strided that can be told in axes; the others stay as they are."""
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    owners = memory_owners(program.graph)
    writes = [(n, owners[base]) for n in order for base in written(n)]
    for node in list(order):
        if node.target is not torch.ops.aten.as_strided.default:
            continue
        if any(owner is owners[node] and order[n] > order[node] for n, owner in writes):
            continue  # what is read, or what came of it, is written to later
        found = _selection(node)
        if found is not None:
            _replace(program, node, *found)
    program.graph.lint()


def _selection(node: fx.Node) -> tuple[int, int, list[int], list[int]] | None:
    """(first touched axis, how many, the entries read of those taken as one, result sizes); of as
    few axes as the addresses allow."""
    given = bound_arguments(node)
    x = fake_value(given["x"])
    before = list(zip(map(_expr, x.shape), map(_expr, x.stride()), strict=True))
    after = list(zip(map(_expr, given["size"]), map(_expr, given["stride"]), strict=True))
    own = _expr(x.storage_offset())
    start = own if given["storage_offset"] is None else _expr(given["storage_offset"])
    most = _common(before, after)
    for lead in range(most, -1, -1):
        for trail in range(_common(before[lead:][::-1], after[lead:][::-1]), -1, -1):
            touched = before[lead : len(before) - trail]
            made = after[lead : len(after) - trail]
            read = _read(touched, made, start - own)
            if read is not None:
                return lead, len(touched), read, [int(size) for size, _ in made]
    return None


def _read(touched: list[Any], made: list[Any], offset: Any) -> list[int] | None:
    """The entries of the touched axes, taken as one, that are at the addresses of the made ones."""
    if not touched or not made:
        return None
    try:
        unit = min((stride for _, stride in touched), key=_estimate)
        addresses = _addresses(touched, unit)
        places = {place: i for i, place in enumerate(addresses)}
        read = [places.get(place + _ratio(offset, unit)) for place in _addresses(made, unit)]
    except (TypeError, ValueError):  # sizes that are not known
        return None
    found = [i for i in read if i is not None]
    return found if len(found) == len(read) and len(places) == len(addresses) else None


def _estimate(size: Any) -> Any:
    return size.subs(dict.fromkeys(size.free_symbols, 7))


def _expr(value: Any) -> Any:
    """A size as a sympy expression; a node stands for the size it yields."""
    value = fake_value(value) if isinstance(value, fx.Node) else value
    return sympy.Integer(value) if isinstance(value, int) else value.node.expr


def _common(a: list[Any], b: list[Any]) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    )


def _ratio(value: Any, unit: Any) -> int:
    found = sympy.simplify(value / unit)
    if not found.is_Integer:
        raise ValueError(f"{value} is no multiple of {unit}")
    return int(found)


def _addresses(axes: list[Any], unit: Any) -> list[int]:
    """Where the entries of some axes lie, in row-major order, in units."""
    found = [0]
    for size, stride in axes:
        step, count = _ratio(stride, unit), int(size)
        if len(found) * count > LARGEST:
            raise ValueError("a long selection")
        found = [place + i * step for place in found for i in range(count)]
    return found


def _replace(program: Program, node: fx.Node, axis: int, count: int, read: Any, sizes: Any) -> None:
    aten, source = torch.ops.aten, node.args[0]
    assert isinstance(source, fx.Node)
    index = torch.tensor(read, device=fake_value(node).device)
    name = f"{node.name}_read"

    def call(target: Any, *args: Any, name: str | None = None) -> fx.Node:
        made = program.graph.create_node("call_function", target, args, name=name)
        made.meta = dict(node.meta)
        made.meta["val"] = target(*(fake_value(a) if isinstance(a, fx.Node) else a for a in args))
        return made

    with program.graph.inserting_before(node):
        constant = program.graph.get_attr(SELECTION + name)
        constant.meta["val"] = fake_value(source).fake_mode.from_tensor(index, static_shapes=True)
        flat = (
            source if count == 1 else call(aten.flatten.using_ints, source, axis, axis + count - 1)
        )
        result = call(aten.index_select.default, flat, axis, constant, name=name)
        if len(sizes) != 1:
            result = call(aten.unflatten.int, result, axis, sizes)
    program.tensors[SELECTION + name] = index
    node.replace_all_uses_with(result)
    program.graph.erase_node(node)
