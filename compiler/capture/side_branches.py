"""Branches that hold parameters and that the captured outputs do not depend on.

An output that does not matter, an auxiliary head that runs only in training: their layers read the
same widths. They are captured apart, to be typed: the module's layers there must follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..cause import cause
from ..errors import CaptureError
from ..ir.program import Program
from .eval_mode import eval_mode
from .examples import copied_call
from .export import export
from .program import identity, program_of
from .train_mode import train_mode
from .untouched import copy_on_write

Call = tuple[tuple[Any, ...], dict[str, Any]]


def side_branches(model: nn.Module, call: Call, program: Program, training: bool) -> list[Program]:
    """Programs in which the parameters that `program` does not use are used, as far as the model's
    forward reaches them: in eval mode, and with `training` also in train mode. What cannot be had
    is noted in the program. The model is left as it was."""
    found: list[Program] = []
    for mode in (False, True) if training else (False,):
        missing = _unreached(model, [program, *found])
        if not missing:
            break
        try:
            switch = train_mode if mode else eval_mode
            with switch(model), _taps(model, _ran(model, call, missing)) as tapped:
                if not tapped:
                    continue
                exported, how = export(model, *call, {})
            side = program_of(model, exported, *call, how)
            _rename(side, [program, *found])
            found.append(side)
        except Exception as error:  # CaptureError, and whatever a model raises in train mode
            _note(program, missing, mode, error)
    for side in found:
        _note_reached(program, side)
    return found


def _unreached(model: nn.Module, programs: list[Program]) -> dict[str, nn.Module]:
    """The modules that own parameters no program uses, by path."""
    used = {identity(t) for p in programs for t in p.tensors.values()}
    return {
        path: module
        for path, module in model.named_modules()
        if any(
            identity(p) not in used and p.is_floating_point()
            for p in module.parameters(recurse=False)
        )
    }


def _rename(side: Program, programs: list[Program]) -> None:
    """A tied tensor goes by the name the other programs know it by."""
    names = {identity(t): name for p in reversed(programs) for name, t in p.tensors.items()}
    new = {name: names.get(identity(t), name) for name, t in side.tensors.items()}
    side.tensors = {new[name]: t for name, t in side.tensors.items()}
    side.aliases = {new.get(name, name): others for name, others in side.aliases.items()}
    for node in side.graph.nodes:
        if node.op == "get_attr":
            node.target = new.get(str(node.target), node.target)


def _ran(model: nn.Module, call: Call, modules: dict[str, nn.Module]) -> list[nn.Module]:
    """Those of the modules that a forward calls."""
    ran: dict[int, nn.Module] = {}

    def see(module: nn.Module, *_: Any) -> None:
        ran[id(module)] = module

    hooks = [module.register_forward_pre_hook(see) for module in modules.values()]
    args, kwargs = copied_call(*call)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), copy_on_write(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran.values())


@contextmanager
def _taps(model: nn.Module, modules: list[nn.Module]) -> Iterator[bool]:
    """Within the block the model also returns what these modules return: nothing of theirs is
    dropped as unused."""
    seen: list[Tensor] = []

    def tap(module: nn.Module, args: Any, result: Any) -> None:
        seen.extend(x for x in pytree.tree_leaves(result) if isinstance(x, Tensor))

    def add(module: nn.Module, args: Any, result: Any) -> Any:
        leaves = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        both = (*leaves, *seen)
        seen.clear()
        return both

    hooks = [module.register_forward_hook(tap) for module in modules if module is not model]
    hooks.append(model.register_forward_hook(add))
    try:
        yield bool(modules)
    finally:
        for hook in hooks:
            hook.remove()


def _note(program: Program, missing: dict[str, nn.Module], mode: bool, error: Exception) -> None:
    names = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    said = str(error).partition(" Remedy:")[0]
    why = said if isinstance(error, CaptureError) else cause(error)
    program.notes.append(
        f"the branch with {names} could not be captured in {'train' if mode else 'eval'} mode "
        f"({why.rstrip('.')}): its layers keep their widths, and the user's class is kept only if "
        "it runs so"
    )


def _note_reached(program: Program, side: Program) -> None:
    own = [name for name in side.tensors if name not in program.tensors]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in own))
    if layers:
        program.notes.append(
            f"{len(layers)} layers run outside the captured outputs "
            f"({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''}): they follow the "
            "widths they read; their own stay, and a graph module leaves them out"
        )
