"""Fresh calls that the model can answer: drawn ones, or the example's samples in another order."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from ..capture.batch import Arguments
from ..capture.examples import fresh_inputs, reordered_inputs
from ..ir.program import Program
from .interpreter import ProgramInterpreter

_ANSWERED: weakref.WeakKeyDictionary[fx.Graph, dict[int, bool]] = weakref.WeakKeyDictionary()


def fresh_call(program: Program, seed: int) -> Arguments:
    """New inputs like the program's example. Where it does not answer those (an index beyond a
    table, NaN in place of numbers) the example's samples in another order."""
    example = program.args, program.kwargs
    if program.is_meta:
        return fresh_inputs(*example, seed=seed)
    call = fresh_inputs(*example, seed=seed)
    # values that may be indices are tried each time, ranges of floats once
    key = seed if any(map(_whole, pytree.tree_leaves(example))) else 0
    known = _ANSWERED.setdefault(program.graph, {})
    if key not in known:
        known[key] = _answers(program, call)
    return call if known[key] else reordered_inputs(*example, seed=seed)


def _whole(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        return False
    return not x.is_floating_point() or bool((x == x.round()).all())


def _answers(program: Program, call: Arguments) -> bool:
    """Whether as much is finite of what the program gives for the call as for its example."""
    run = ProgramInterpreter(program)
    try:
        found = _finite(run(program.flat_inputs(*call)))
    except Exception:  # whatever an op raises on a value it cannot take
        return False
    return all(found) or found == _finite(run(program.flat_inputs()))


def _finite(outputs: list[Any]) -> list[bool]:
    return [
        bool(torch.isfinite(x).all())
        for x in outputs
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    ]
