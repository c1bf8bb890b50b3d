"""The state of a training run as plain values: each process has its part where it is sharded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stateful(Protocol):
    """What has a state of plain values and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class RunState:
    """Model, optimizer, random numbers, accelerate's counters, and `others` by name: schedule,
    progress, average..."""

    def __init__(
        self, made: Accelerator, model: nn.Module, optimizer: Any, others: Mapping[str, Stateful]
    ) -> None:
        self.made, self.model, self.others = made, model, others
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    def take(self) -> dict[str, Any]:
        """All of it."""
        scaler = self.made.scaler
        return {
            "tensors": [_local(t).detach() for t in self._tensors()],
            "optimizer": [
                {k: _local(v) for k, v in self.optimizer.state.get(p, {}).items()}
                for p in self._trained()
            ],
            "groups": [
                {k: v for k, v in group.items() if k != "params"}
                for group in self.optimizer.param_groups
            ],
            "random": _random_state(),
            "step": self.made.step,
            "scaler": None if scaler is None else scaler.state_dict(),
            **{name: other.state_dict() for name, other in self.others.items()},
        }

    @torch.no_grad()
    def put(self, state: dict[str, Any]) -> None:
        """Put a state back. Raises ValueError, and KeyError or TypeError, for one that does not
        fit, before the model is changed."""
        own, stored = self._tensors(), state["tensors"]
        _fit([_local(t) for t in own], stored)
        trained, moments = self._trained(), state["optimizer"]
        if len(trained) != len(moments) or len(state["groups"]) != len(self.optimizer.param_groups):
            raise ValueError("the optimizer has other parameters")
        ready = [
            {k: _like(p, v, k == "step") for k, v in held.items()}
            for p, held in zip(trained, moments, strict=True)
        ]
        for name, other in self.others.items():
            _same_kind(other.state_dict(), state[name])
        for group, held in zip(self.optimizer.param_groups, state["groups"], strict=True):
            _same_kind({k: v for k, v in group.items() if k != "params"}, held)
        for name, other in self.others.items():
            other.load_state_dict(state[name])
        if self.made.scaler is not None:
            self.made.scaler.load_state_dict(state["scaler"])
        for group, held in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update(held)
        for parameter, held in zip(trained, ready, strict=True):
            if held:
                self.optimizer.state[parameter] = held
        for tensor, value in zip(own, stored, strict=True):
            _local(tensor).copy_(value)
        self.made.step = int(state["step"])
        _set_random_state(state["random"])

    def _tensors(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _local(value: Any) -> Any:
    """This process's part of a sharded tensor; anything else as it is."""
    return value.to_local() if hasattr(value, "to_local") else value


def _like(parameter: Tensor, value: Any, counter: bool) -> Any:
    """A value of the optimizer for a parameter: on its device, and sharded as it is. A counter
    stays on the CPU, as AdamW makes it."""
    if not isinstance(value, Tensor) or counter:
        return value
    part = _local(parameter)
    if value.shape != part.shape:
        raise ValueError("a moment of the optimizer has another shape than its parameter")
    made = torch.empty_like(parameter, dtype=value.dtype)
    _local(made).copy_(value)
    return made


def _fit(own: Iterable[Tensor], stored: Iterable[Any]) -> None:
    own, stored = list(own), list(stored)
    same = len(own) == len(stored) and all(
        isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(own, stored, strict=False)
    )
    if not same:
        raise ValueError("its tensors are not those of the model")


def _same_kind(own: Mapping[str, Any], stored: Any) -> None:
    """Raise ValueError where a state has other names, or values of other types."""
    if not isinstance(stored, dict) or stored.keys() != own.keys():
        raise ValueError(f"it has no {' or no '.join(own)}")
    for name, value in own.items():
        if type(stored[name]) is not type(value):
            raise ValueError(f"'{name}' is a {type(stored[name]).__name__}")


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = numpy.random.get_state()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": [str(kind), [int(key) for key in keys], *map(_number, rest)],
        "torch": torch.get_rng_state(),
        "cuda": list(on_devices),
    }


def _number(value: Any) -> int | float:
    return float(value) if isinstance(value, float) else int(value)


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype="uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all(state["cuda"])
