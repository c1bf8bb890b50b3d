"""Caches that an earlier call filled: a table for its batch, a mask for its length.

A model that makes such a value only where it has none fits those sizes once it was called; export
then fixes the batch, or bounds it. The model as it would be without the cache holds for any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..errors import CaptureError
from ..inference.rule import op_name
from ..ir.call_inputs import TensorInput
from ..ir.program import Program, is_symbolic
from ..ir.size_terms import Condition, names_in
from .copies import copy_sharing
from .examples import copied_call
from .untouched import copy_on_write, untouched

Call = tuple[tuple[Any, ...], dict[str, Any]]

TRIALS = 64  # attributes that are tried
_TOLERANCE = 1e-5  # relative
_ABSENT = object()
_OWN = frozenset(vars(nn.Module())) | {"_non_persistent_buffers_set"}  # torch's records of a module


def without_stale_caches(
    model: nn.Module, call: Call, program_for: Callable[[nn.Module], Program]
) -> Program:
    """The program of the model; where caches fixed or bounded its sizes, that of a copy in which
    they are empty, sharing the model's tensors, should it hold for more sizes. A cache is what
    holds a size of the bounds, may be emptied without changing the outputs, and is then filled by
    forward again; but a table with room for more than the call is the model's own (of positions, up
    to its longest text), and stays a tensor of it. Raises what `program_for` raises."""
    failure: CaptureError | None = None
    program: Program | None = None
    try:
        program = program_for(model)
    except CaptureError as error:
        failure = error
    sizes = _bound_sizes(call, program)
    if sizes and any(True for _ in _candidates(model, sizes)):
        emptied, names = _emptied(model, call, sizes)
        try:
            other = program_for(emptied) if names else None
        except CaptureError:
            other = None
        if other is not None and (program is None or _holds_for_more(other, program)):
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            other.notes.append(
                f"captured with {shown} empty, as before a first call: what an earlier call left "
                "there holds for its sizes only"
            )
            return other
    if program is None:
        assert failure is not None
        raise failure
    return program


def _bound_sizes(call: Call, program: Program | None) -> set[int]:
    """The sizes that a program's bounds speak of; the example's where there is no program."""
    leaves = [x for x in pytree.tree_leaves(call) if isinstance(x, Tensor)]
    if program is None or program.call is None:
        return {n for x in leaves for n in x.shape[:2]}
    found: set[int] = set()
    if not program.batched:
        found |= {x.shape[0] for x in leaves if x.dim()}
    found |= {x.shape[1] for x in leaves if x.dim() == 2 and not x.is_floating_point()} & _fixed(
        program
    )
    for node in program.graph.nodes:  # a buffer that forward replaces
        if op_name(node.target) == "aten::copy_" and str(node.args[0].target) in program.tensors:
            found |= set(program.tensors[str(node.args[0].target)].shape)
    for span in program.call.ranges.values():
        found |= {n + d for n in (span.low, span.high) if n is not None for d in (-1, 0, 1)}
    for condition in program.call.conditions:
        found |= set(_numbers((condition.left, condition.right)))
    return {n for n in found if n > 0}


def _fixed(program: Program) -> set[int]:
    return {int(size) for size in _sizes(program) if not is_symbolic(size)}


def _sizes(program: Program) -> Iterator[Any]:
    for node in program.graph.nodes:
        if node.op == "placeholder":
            yield from getattr(node.meta.get("val"), "shape", ())


def _numbers(expression: Any) -> Iterator[int]:
    if isinstance(expression, (tuple, list)):
        for part in expression:
            yield from _numbers(part)
    elif isinstance(expression, int):
        yield expression


def _holds_for_more(other: Program, program: Program) -> bool:
    """Whether more of a call may vary, or as much with fewer bounds that the call is at."""
    free, known = (sum(map(is_symbolic, _sizes(p))) for p in (other, program))
    if free != known or program.call is None:
        return free > known
    bounds, fewer = (len(p.call.describe()) if p.call is not None else 0 for p in (program, other))
    return fewer < bounds and not _has_room(program, other)


def _has_room(program: Program, other: Program) -> bool:
    """Whether sizes beyond those of the example are captured, wherever there is a bound that the
    other does not have."""
    call, free = program.call, other.call
    assert call is not None
    longer: dict[str, int] = {}
    for spec, value in zip(call.inputs, program.flat_inputs(), strict=True):
        axes = zip(spec.axes, value.shape, strict=True) if isinstance(spec, TensorInput) else ()
        for size, given in axes:
            if size.symbol:
                longer[size.symbol] = (given - size.offset) // size.factor + 1
    shared = free.conditions if free is not None else ()
    for condition in call.conditions:
        if condition in shared or _names(condition) - longer.keys():
            continue
        if condition.relation not in ("<", "<=") or not condition.holds(longer):
            return False
    highest = {name: span.high for name, span in call.ranges.items()}
    return all(size <= (highest.get(name) or size) for name, size in longer.items())


def _names(condition: Condition) -> set[str]:
    return {*names_in(condition.left), *names_in(condition.right)}


def _candidates(model: nn.Module, sizes: set[int]) -> Iterator[tuple[str, Any, str]]:
    """(name for people, owner, attribute) of what may be a cache for such sizes: plain attributes
    of modules and of the objects they hold, and buffers that are not stored."""
    owners: list[tuple[str, Any]] = [*model.named_modules()]
    seen = {id(owner) for _, owner in owners}
    while owners:
        path, owner = owners.pop(0)
        held = {} if not isinstance(owner, nn.Module) else owner._buffers
        own = {n: t for n, t in held.items() if n in owner._non_persistent_buffers_set}
        for name, value in (*vars(owner).items(), *own.items()):
            if isinstance(owner, nn.Module) and name in _OWN:
                continue
            label = f"{path}.{name}".lstrip(".")
            if _speaks_of(value, sizes):
                yield label, owner, name
            elif _is_plain_object(value) and id(value) not in seen:
                seen.add(id(value))
                owners.append((label, value))


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return False
    root = type(value).__module__.partition(".")[0]
    return isinstance(getattr(value, "__dict__", None), dict) and root not in ("torch", "builtins")


def _speaks_of(value: Any, sizes: set[int], depth: int = 3) -> bool:
    """Whether a value is or holds a size of these, or a tensor with such an axis."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and bool(sizes & set(value.shape))
    if isinstance(value, int):
        return not isinstance(value, bool) and value in sizes
    if not depth:
        return False
    if isinstance(value, dict):
        return any(_speaks_of(x, sizes, depth - 1) for x in (*value, *value.values()))
    members = isinstance(value, (list, tuple, set)) and len(value) <= 256
    return members and any(_speaks_of(x, sizes, depth - 1) for x in value)


def _emptied(model: nn.Module, call: Call, sizes: set[int]) -> tuple[nn.Module, list[str]]:
    """A copy of the model whose caches are empty, and their names; the model itself and none where
    there are no caches, or where it cannot be copied or does not run."""
    try:
        copy = copy_sharing(model)
        expected, _ = _outputs(copy, call)
    except Exception:  # whatever the user's objects raise when copied, and its forward
        return model, []
    chosen: list[tuple[str, Any, str, Any]] = []
    for label, owner, name in list(_candidates(copy, sizes))[:TRIALS]:
        for empty in _empty_values(owner, name):
            if _holds(copy, call, expected, [*chosen, (label, owner, name, empty)]):
                chosen.append((label, owner, name, empty))
                break
    for _, owner, name, empty in chosen:
        _set(owner, name, empty)
    return copy, [label for label, *_ in chosen]


def _holds(
    copy: nn.Module, call: Call, expected: list[Any], emptied: list[tuple[str, Any, str, Any]]
) -> bool:
    """Whether the outputs stay with these attributes empty, and forward fills the last one."""
    try:
        found, filled = _outputs(copy, call, emptied)
    except Exception:  # whatever a forward raises on what it did not expect
        return False
    return filled and len(found) == len(expected) and all(map(_close, found, expected))


def _outputs(
    copy: nn.Module, call: Call, emptied: list[tuple[str, Any, str, Any]] | None = None
) -> tuple[list[Any], bool]:
    """The outputs, and whether the last of the emptied attributes was set meanwhile."""
    with torch.no_grad(), untouched(copy), copy_on_write(copy):
        for _, owner, name, empty in emptied or ():
            _set(owner, name, empty)
        args, kwargs = copied_call(*call)
        torch.manual_seed(0)
        found = pytree.tree_leaves(copy(*args, **kwargs))
        if not emptied:
            return found, False
        _, owner, name, empty = emptied[-1]
        now = getattr(owner, name, _ABSENT)
        if isinstance(now, (dict, list, set)):
            return found, bool(now)
        return found, now is not None and now is not _ABSENT and now is not empty


def _empty_values(owner: Any, name: str) -> Iterator[Any]:
    """What an attribute may have been before a first call."""
    value = getattr(owner, name, None)
    default = getattr(type(owner), name, _ABSENT)
    if default is not _ABSENT and not hasattr(default, "__get__"):
        yield _ABSENT  # the class's own shows again
    if isinstance(value, (dict, list, set)):
        yield type(value)()
    yield None
    if isinstance(value, int):
        yield 0
        yield -1
    if isinstance(value, Tensor):
        yield value.new_empty(0)
    yield _ABSENT


def _set(owner: Any, name: str, value: Any) -> None:
    if value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, type(value)(value) if isinstance(value, (dict, list, set)) else value)


def _close(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return isinstance(expected, (int, float, str, bool, type(None))) and found == expected
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(found, expected)
    a, b = found.double().nan_to_num(), expected.double().nan_to_num()
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
