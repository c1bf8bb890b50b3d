"""What a training run borrows and gives back: modes, device, random state, the good weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...compiler.capture.batches import Device
from .losses import DistillError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Every module in train or eval mode; afterwards each is back in its own former mode."""
    former = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in former:
            module.training = mode


@contextmanager
def in_training(model: nn.Module, *, dropout: bool) -> Iterator[None]:
    """Train mode; without `dropout` only where learning needs it, and eval mode for all else, so
    that dropout, stochastic depth and masked inputs are off however a class writes them.

    Train mode is needed by running statistics, by layers that recompute their values (gradient
    checkpointing), and by recurrent layers on CUDA, which meanwhile drop nothing between them.
    """
    recurrent = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    rates = [module.dropout for module in recurrent]
    with in_mode(model, training=True):
        if not dropout:
            for module in model.modules():
                module.training &= _needs_train_mode(module)  # a class may have frozen some
            for module in recurrent:
                module.dropout = 0.0
        try:
            yield
        finally:
            for module, rate in zip(recurrent, rates, strict=True):
                module.dropout = rate


def _needs_train_mode(module: nn.Module) -> bool:
    return (
        "running_mean" in module._buffers
        or isinstance(module, nn.RNNBase)
        or bool(getattr(module, "gradient_checkpointing", False))
    )


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
    """The random state seeded inside, and outside as if nothing had been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


class LastGood:
    """A copy of what training changes: the trainable parameters, and the buffers (statistics)."""

    def __init__(self, model: nn.Module) -> None:
        self.live: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.live += model.buffers()
        self.kept = [tensor.detach().clone() for tensor in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        for kept, live in zip(self.kept, self.live, strict=True):
            kept.copy_(live)

    @torch.no_grad()
    def restore(self) -> None:
        for kept, live in zip(self.kept, self.live, strict=True):
            live.copy_(kept)

    def is_finite(self) -> bool:
        """Whether the model, as it is now, has only finite parameters."""
        return all(
            bool(tensor.isfinite().all())
            for tensor in self.live
            if isinstance(tensor, nn.Parameter)
        )


def refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student whose training would write into the teacher's memory.

    Raises:
        DistillError: a trainable parameter or a running statistic lies in the teacher's storage.
    """
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
