"""accelerate, taken for one run: its global state and the model's attributes are left as found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader

from .losses import DistillError

if TYPE_CHECKING:
    from ..distill import Distill

_PREPARED = "_is_accelerate_prepared"
_BEFORE = "_original_forward"
_Forward = Callable[..., Any] | None


@contextmanager
def accelerator(options: Distill, device: torch.device) -> Iterator[Accelerator]:
    """accelerate for this run; its global state is left as it was found.

    Raises:
        DistillError: the caller has an Accelerator of another precision.
    """
    fresh = not AcceleratorState._shared_state
    precision = options.precision if fresh else AcceleratorState().mixed_precision
    if precision != options.precision:
        raise DistillError(
            f"precision={options.precision!r}, but this process has an Accelerator of"
            f" {precision!r}, and there can be one only: give both the same."
        )
    gradients = dict(GradientState._shared_state)  # pyright: ignore[reportCallIssue, reportArgumentType]
    GradientState._reset_state()
    made = Accelerator(
        cpu=device.type == "cpu",
        device_placement=False,
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        step_scheduler_with_optimizer=False,
    )
    try:
        yield made
    finally:
        GradientState._reset_state()
        GradientState._shared_state.update(gradients)
        if fresh:
            AcceleratorState._reset_state(made.num_processes == 1)


def take(model: nn.Module) -> _Forward:
    """Let accelerate prepare the model, which it does not where it has before; gives the `forward`
    that the model, rather than its class, has."""
    vars(model).pop(_PREPARED, None)
    return vars(model).get("forward")


def leave(model: nn.Module, forward: _Forward) -> None:
    """Remove what accelerate left behind, and put `forward` back."""
    for name in (_PREPARED, _BEFORE, "forward"):
        vars(model).pop(name, None)
    if forward is not None:
        vars(model)["forward"] = forward


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """The model as it computes by itself."""
    held = vars(model)
    wrapped = held.get("forward")
    if _BEFORE in held:
        held["forward"] = held[_BEFORE]
    try:
        yield
    finally:
        if wrapped is not None:
            held["forward"] = wrapped


def shared(made: Accelerator, loader: Iterable[Any]) -> Iterable[Any]:
    """What this process reads of the loader: every n-th batch."""
    if made.num_processes == 1:
        return loader
    if isinstance(loader, DataLoader):
        return made.prepare_data_loader(loader, device_placement=False)
    return _Share(loader, made.process_index, made.num_processes)


class _Share:
    """Every `of`-th batch from the `rank`-th on, as many for each process."""

    def __init__(self, loader: Iterable[Any], rank: int, of: int) -> None:
        self.loader, self.rank, self.of = loader, rank, of

    def __len__(self) -> int:
        return len(self.loader) // self.of  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        group: list[Any] = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == self.of:
                yield group[self.rank]
                group = []
