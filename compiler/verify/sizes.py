"""The same call at other sizes than the example's, inside the range that it was captured for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..capture.batch import Arguments, batch_size, resize_batch
from ..ir.call_inputs import NumberInput, Size, TensorInput
from ..ir.program import Program
from .interpreter import ProgramInterpreter


def other_batch(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The call at another batch size; as it is where the program takes no other."""
    have = batch_size(args, kwargs) or 0
    for size in (3 if have == 2 else 2, have + 1, have - 1, 1):
        if size < 1 or size == have or not program.batched:
            continue
        call = resize_batch(args, kwargs, size)
        if admitted(program, call):
            return call
    return args, kwargs


def other_lengths(program: Program, call: Arguments) -> Arguments:
    """The call with every further size that may vary (lengths of sequences) at another value; as it
    is where there is none, or where the program does not run so: values may number a size."""
    batch, used = batch_size(*call), dict(_symbols(program, pytree.tree_leaves(call)))
    lengths = {s: n for s, n in used.items() if n > 1 and not _is_batch(program, s, call, batch)}
    if not lengths:
        return call
    for change in (_three_quarters, _one_less, _one_more):
        wanted = {symbol: change(length) for symbol, length in lengths.items()}
        other = _at(program, call, wanted)
        if wanted != lengths and admitted(program, other):
            try:
                ProgramInterpreter(program)(program.flat_inputs(*other))
            except Exception:  # whatever an op raises on an index beyond the cut
                continue
            return other
    return call


def admitted(program: Program, call: Arguments) -> bool:
    """Whether the program was captured for such a call."""
    return program.call is None or program.call.admits(pytree.tree_leaves(call))


def few_rows(program: Program, flat: Sequence[Any], rows: int) -> list[Any]:
    """Flat inputs with that many rows, where the program takes them."""
    if not program.batched:
        return list(flat)
    found = list(resize_batch(tuple(flat), {}, rows)[0])
    return found if admitted(program, (tuple(found), {})) else list(flat)


def _three_quarters(length: int) -> int:
    return max(length * 3 // 4, 1)


def _one_less(length: int) -> int:
    return length - 1


def _one_more(length: int) -> int:
    return length + 1


def _places(program: Program) -> Iterator[tuple[int, int | None, Size]]:
    """(flat input, axis, size) of what has a symbol; no axis: the input is the size itself."""
    for place, spec in enumerate(program.call.inputs if program.call is not None else ()):
        if isinstance(spec, NumberInput) and spec.size.symbol:
            yield place, None, spec.size
        for axis, size in enumerate(spec.axes if isinstance(spec, TensorInput) else ()):
            if size.symbol:
                yield place, axis, size


def _symbols(program: Program, flat: Sequence[Any]) -> Iterator[tuple[str, int]]:
    """Each symbol with its value in a call."""
    for place, axis, size in _places(program):
        value = flat[place] if axis is None else flat[place].shape[axis]
        yield size.symbol, (value - size.offset) // size.factor


def _is_batch(program: Program, symbol: str, call: Arguments, batch: int | None) -> bool:
    flat = pytree.tree_leaves(call)
    return any(
        size.symbol == symbol and axis == 0 and flat[place].shape[0] == batch
        for place, axis, size in _places(program)
    )


def _at(program: Program, call: Arguments, wanted: Mapping[str, int]) -> Arguments:
    """The call with symbols at other values, by repeating or cutting what it holds."""
    flat, spec = pytree.tree_flatten(call)
    for place, axis, size in _places(program):
        if size.symbol not in wanted:
            continue
        length = size.factor * wanted[size.symbol] + size.offset
        value = flat[place]
        if axis is None:
            flat[place] = length
        elif isinstance(value, Tensor) and value.shape[axis]:
            entries = torch.arange(length, device=value.device) % value.shape[axis]
            flat[place] = value.index_select(axis, entries)
    return pytree.tree_unflatten(flat, spec)
