"""What a training run borrows and gives back: device, random states, the good weights."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn

from ...compiler.capture.batches import Device
from .losses import DistillError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def on_device(model: nn.Module, device: Device) -> Iterator[torch.device]:
    """The model on `device`, which is given; afterwards back, in the memory it had before.

    The same memory, because the dense graph and the module made from it share theirs. None, or
    the device it is on, moves nothing.
    """
    here = device_of(model)
    if device is None or _is_on(here, device):
        yield here
        return
    parameters = [(p, p.data) for p in model.parameters()]
    buffers = [(m, name, b) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    model.to(device)
    try:
        yield device_of(model)
    finally:
        with torch.no_grad():
            for parameter, former in parameters:
                former.copy_(parameter.data)
                parameter.data = former
            for module, name, former in buffers:
                former.copy_(module.get_buffer(name))
                module._buffers[name] = former


def teacher_on(teacher: nn.Module, device: Device) -> nn.Module:
    """The teacher itself, or its copy where it would have to move: the original stays untouched."""
    if device is None or _is_on(device_of(teacher), device):
        return teacher
    return copy.deepcopy(teacher).to(device)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The random states of torch, numpy and Python seeded inside, and outside as if nothing had
    been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)


class LastGood:
    """A copy of what training changes: the trainable parameters, and the buffers (statistics)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.kept = [tensor.detach().clone() for tensor in self.live()]

    def live(self) -> list[Tensor]:
        """The tensors as they are now: a norm may put new ones in the place of its buffers."""
        return [*self._trained, *self._model.buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        for kept, live in zip(self.kept, self.live(), strict=True):
            kept.copy_(live)

    @torch.no_grad()
    def restore(self) -> None:
        for kept, live in zip(self.kept, self.live(), strict=True):
            live.copy_(kept)

    def is_finite(self) -> bool:
        """Whether the model, as it is now, has only finite parameters."""
        return all(bool(parameter.isfinite().all()) for parameter in self._trained)


def refuse_shared(student: nn.Module, teacher: nn.Module, dropout: bool) -> None:
    """Refuse a student whose training would write into the teacher's memory, or change its modes.

    Raises:
        DistillError: a trainable parameter or a running statistic lies in the teacher's storage, or
            with `dropout` a module is part of both.
    """
    own = set(teacher.modules()) if dropout else set()
    shared = [name for name, module in student.named_modules() if module in own]
    if shared:
        raise DistillError(
            f"{shared[0] or 'The smaller model'} is part of both models, and with dropout=True the"
            " original would drop as well: distil a copy.deepcopy of it."
        )
    owned = {_storage(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    written = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    written += [(name, b) for name, b in student.named_buffers() if name.endswith(_STATISTICS)]
    for name, tensor in written:
        if tensor.numel() and _storage(tensor) in owned:
            raise DistillError(
                f"The smaller model shares the memory of {name} with the original, which training"
                " would change: distil a copy.deepcopy of it."
            )


def _is_on(here: torch.device, device: torch.device | str) -> bool:
    """Whether `device` means `here`; "cuda" means the current CUDA device."""
    return torch.empty(0, device=device).device == here


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
