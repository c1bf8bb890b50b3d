"""Depth on the user's own class: members out of module lists, stubs where a branch's module was."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PlanError

Lists = (nn.ModuleList, nn.Sequential)


class NoBranch(nn.Module):
    """What stands for a module that a dropped branch left empty.

    `form`: "zero" returns a zero that any sum can take, for a module that gave the branch; "input"
    returns what it is given first, for one that held the sum too. "zero/3", "input/3": the module
    returned three values, of which that is the first and the others are None.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A zero has no axes, and the dtype and device of the first float tensor that is given."""
        kind, _, count = self.form.partition("/")
        given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        first = next((x for x in given if x.is_floating_point()), torch.zeros(()))
        value = first if kind == "input" else first.new_zeros(())
        return (value, *[None] * (int(count) - 1)) if count else value

    def extra_repr(self) -> str:
        return self.form


@dataclasses.dataclass(frozen=True)
class Thinning:
    """Members to take out, by the path of their list; stubs to put in, by path, with their form.
    Paths and names are the original's throughout."""

    members: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    stubs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.members or self.stubs)

    def apply(self, model: nn.Module) -> None:
        """Change the module for good. Raises PlanError when it lacks what is to go."""
        self._change(model)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The module changed as long as the block runs."""
        undo = self._change(model)
        try:
            yield
        finally:
            for step in reversed(undo):
                step()

    def now(self, name: str) -> str:
        """The name that a tensor or module of the original has in the thinner model."""
        return self._renamed(name, forward=True)

    def original(self, name: str) -> str:
        """The original's name of what has this one in the thinner model."""
        return self._renamed(name, forward=False)

    def _renamed(self, name: str, forward: bool) -> str:
        before: list[str] = []  # the original's path so far: what lists are known by
        after: list[str] = []
        for part in name.split("."):
            gone = sorted(self.members.get(".".join(before), ()))
            own = new = part
            if gone and part.isdecimal():
                index = int(part)
                if forward:
                    new = str(index - sum(i < index for i in gone))
                else:
                    for i in gone:
                        index += i <= index
                    own = str(index)
            before.append(own)
            after.append(new)
        return ".".join(after if forward else before)

    def _change(self, model: nn.Module) -> list[Any]:
        undo: list[Any] = []
        modules = dict(model.named_modules(remove_duplicate=False))
        lists = [(path, modules.get(path), gone) for path, gone in self.members.items()]
        for path in (*self.members, *self.stubs):
            if path not in modules:
                raise PlanError(
                    f"the plan takes modules out of '{path}', which {type(model).__name__} does "
                    "not have; apply it to the model it was made for."
                )
        for path, form in self.stubs.items():
            owner, _, name = path.rpartition(".")
            held, old = modules[owner]._modules, modules[path]
            held[name] = NoBranch(form)
            undo.append(lambda held=held, name=name, old=old: held.__setitem__(name, old))
        for path, owner, gone in lists:
            if not isinstance(owner, Lists) or not all(0 <= i < len(owner) for i in gone):
                raise PlanError(
                    f"the plan takes members {list(gone)} out of '{path}', which "
                    f"{type(model).__name__} does not have; apply it to the model it was made for."
                )
            undo += _thinned(owner, set(gone))
        return undo


def _thinned(owner: nn.Module, gone: set[int]) -> list[Any]:
    """Take members out and number the rest anew, in their list and in what they know of it."""
    before = dict(owner._modules)
    members = list(before.values())
    undo: list[Any] = [lambda: (owner._modules.clear(), owner._modules.update(before))]
    stay = [i for i in range(len(members)) if i not in gone]
    for part, name, index in _own_numbers(members):
        if index in stay:
            new = stay.index(index)
            undo.append(lambda part=part, name=name, old=index: setattr(part, name, old))
            setattr(part, name, new)
    owner._modules.clear()
    owner._modules.update({str(i): members[old] for i, old in enumerate(stay)})
    return undo


def _own_numbers(members: Sequence[nn.Module | None]) -> Iterator[tuple[nn.Module, str, int]]:
    """(module, attribute, member) of the integers that say, in every member, which one it is."""
    known: list[dict[tuple[str, str], tuple[nn.Module, int]]] = [
        {
            (path, name): (part, value)
            for path, part in (member.named_modules() if member is not None else ())
            for name, value in vars(part).items()
            if type(value) is int
        }
        for member in members
    ]
    for key in known[0] if known else ():
        places = [own.get(key) for own in known]
        if all(p is not None and p[1] == i for i, p in enumerate(places)) and len(places) > 1:
            for i, place in enumerate(places):
                assert place is not None
                yield place[0], key[1], i
