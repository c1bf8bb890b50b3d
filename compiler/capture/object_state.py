"""The state of the objects that a model holds, and putting it back: attributes, lists, dicts, sets,
tensors, generators, arrays, and what classes and modules of source keep for them."""

from __future__ import annotations

import collections
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

Undo = Callable[[], None]
_FOREIGN = ("torch", "builtins", "typing", "abc", "collections", "numpy", "enum", "functools")
_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, type)
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
_LARGEST = 200_000  # objects of one model
_CONTAINERS = (list, dict, set, collections.deque)


class ObjectState:
    """What can be reached from some modules, as it is now; `restore` puts it back.

    Tensors are copied, parameters are not: of those, which memory they have, and what a
    `CopyOnWrite` kept of it. `shared`: the attributes of classes and the globals beside them, too.
    """

    def __init__(self, models: tuple[nn.Module, ...], shared: bool) -> None:
        self._undo: list[Undo] = []
        self._seen: dict[int, Any] = {}
        self._weights = {memory(t) for model in models for t in model.parameters()}
        self._types: dict[type, None] = {}
        self._walk(list(models))
        if shared:
            for cls in list(self._types):
                self._class(cls)
            for name in dict.fromkeys(cls.__module__ for cls in self._types):
                self._globals(sys.modules.get(name))

    def restore(self) -> None:
        """Put everything back, the containers before what is in them."""
        for undo in self._undo:
            undo()

    def _walk(self, waiting: list[Any]) -> None:
        while waiting and len(self._seen) < _LARGEST:
            value = waiting.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            waiting.extend(self._keep(value))

    def _keep(self, value: Any) -> Iterator[Any]:
        """Note how to restore a value, and give what it holds."""
        if isinstance(value, Tensor):
            self._undo.extend(_tensor(value, memory(value) in self._weights))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(lambda: value.set_state(state) and None)
        elif isinstance(value, numpy.ndarray):
            self._undo.append(_array(value))
        elif isinstance(value, _CONTAINERS):
            self._undo.append(container(value))
            yield from list(value.values()) if isinstance(value, dict) else list(value)
        elif isinstance(value, (tuple, frozenset)):
            yield from value
        if isinstance(value, _CODE) or not hasattr(value, "__dict__"):
            return
        if not isinstance(value, nn.Module) and _is_foreign(type(value)):
            return
        own = value.__dict__
        if isinstance(own, dict):
            for cls in type(value).__mro__:
                if not _is_foreign(cls):
                    self._types[cls] = None
            self._undo.append(container(own))
            yield from list(own.values())

    def _class(self, cls: type) -> None:
        before = {k: v for k, v in vars(cls).items() if not k.startswith("__")}
        self._undo.append(functools.partial(_restore_class, cls, before))
        self._hold(before.values())

    def _globals(self, module: Any) -> None:
        before = dict(getattr(module, "__dict__", {}))
        for name, value in before.items():
            if value is None or isinstance(value, (Tensor, int, float, tuple)):
                self._undo.append(functools.partial(_rebind, module, name, value))
        self._hold(before.values())

    def _hold(self, values: Any) -> None:
        """Containers and caches that many models share: what they hold is not looked into."""
        for value in values:
            if type(value) in (list, dict, set, collections.OrderedDict, collections.defaultdict):
                self._undo.append(container(value))
            elif isinstance(value, functools._lru_cache_wrapper):
                self._undo.append(functools.partial(_drop_new, value, value.cache_info().misses))


def container(value: Any) -> Undo:
    """How to give a list, dict, set or deque the entries it has now."""
    if isinstance(value, dict):
        entries = list(value.items())
        ordered = isinstance(value, collections.OrderedDict)
        base: Any = collections.OrderedDict if ordered else dict

        def restore_dict() -> None:
            now = list(value.items())
            same = len(now) == len(entries) and all(
                a[0] is b[0] and a[1] is b[1] for a, b in zip(now, entries, strict=True)
            )
            if not same:
                base.clear(value)
                for key, entry in entries:
                    base.__setitem__(value, key, entry)

        return restore_dict
    entries = list(value)

    def restore() -> None:
        now = list(value)
        if len(now) == len(entries) and all(a is b for a, b in zip(now, entries, strict=True)):
            return
        if isinstance(value, set):
            set.clear(value)
            set.update(value, entries)
        elif isinstance(value, list):
            list.__setitem__(value, slice(None), entries)
        else:
            value.clear()
            value.extend(entries)

    return restore


def _is_foreign(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in _FOREIGN


def memory(tensor: Tensor) -> int:
    """The memory a tensor lies in; 0 where it has none of its own kind."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # sparse, or a subclass without storage
        return 0


def _tensor(tensor: Tensor, weight: bool) -> Iterator[Undo]:
    needs, grad = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
    try:
        data = tensor.data
        copy = None if weight or tensor.is_meta else data.clone()
    except (RuntimeError, NotImplementedError):  # no plain tensor: left alone
        return

    def restore() -> None:
        if tensor.data.shape != data.shape or memory(tensor) != memory(data):
            tensor.data = data
        if copy is not None and not _equal(tensor.data, copy):
            tensor.data.copy_(copy)
        if tensor.is_leaf:
            if tensor.requires_grad != needs:
                tensor.requires_grad_(needs)
            if tensor.grad is not grad:
                tensor.grad = grad

    yield restore


def _equal(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.equal(a, b)
    except (RuntimeError, NotImplementedError):
        return False


def _array(value: numpy.ndarray) -> Undo:
    copy = value.copy()

    def restore() -> None:
        if value.flags.writeable:
            value[...] = copy

    return restore


def _restore_class(cls: type, before: dict[str, Any]) -> None:
    now = {k: v for k, v in vars(cls).items() if not k.startswith("__")}
    for name in now.keys() - before.keys():
        if not name.startswith("_abc"):
            delattr(cls, name)
    for name, value in before.items():
        if name not in now or now[name] is not value:
            setattr(cls, name, value)


def _rebind(module: Any, name: str, value: Any) -> None:
    if module.__dict__.get(name) is not value:
        module.__dict__[name] = value


def _drop_new(cached: Any, misses: int) -> None:
    """A cache that was added to forgets all: what it holds may be of a trace."""
    if cached.cache_info().misses != misses:
        cached.cache_clear()
