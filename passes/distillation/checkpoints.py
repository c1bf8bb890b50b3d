"""Checkpoints of a training run: JSON and safetensors, written whole or not at all, read back only
by the same run."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from ...compiler.artifact.files import read_bytes
from ...compiler.durable import sync_directory, sync_tree, write_whole
from ...compiler.errors import ArtifactError
from .losses import DistillError
from .plain_state import read_state, write_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .run_state import RunState

_RUN = "run.json"
_STEP = "step-"
_WEIGHTS = "weights"
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_SAMPLED = 8  # entries of a tensor
_FORMAT = 2
# What a file raises that is missing, cut off, changed, or of something else.
_DAMAGED = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, RecursionError, RuntimeError, SafetensorError, ArtifactError),
)


class Checkpoints:
    """The states of one run in a directory, the newest only; None: none are kept.

    `run` identifies it: options and shapes, JSON types; `weights`: the sample of the student's (see
    `sample`) that it began from. Each process writes a state of its own.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        every: int,
        run: dict[str, Any],
        weights: dict[str, list[float]],
    ) -> None:
        self.directory = None if directory is None else pathlib.Path(directory)
        self.every = every
        self.run = json.loads(json.dumps({"format": _FORMAT, **run}, default=str))
        self.weights = weights

    def newest(self) -> int | None:
        """The step of the newest checkpoint.

        Raises:
            DistillError: the directory holds another run's, or something that is none.
        """
        if self.directory is None or not os.path.lexists(self.directory / _RUN):
            return None
        try:
            found = json.loads(read_bytes(self.directory / _RUN).decode("utf-8"))
            began = found.pop(_WEIGHTS, {})
            same = found == self.run
            began_alike = same and _alike(began, self.weights)
        except _DAMAGED as error:
            raise self._damaged(self.directory / _RUN, error) from error
        if not began_alike:
            keys = sorted(found.keys() | self.run.keys())
            other = [key for key in keys if found.get(key) != self.run.get(key)]
            other = other or ["the weights that the smaller model begins with"]
            raise DistillError(
                f"{self.directory} holds the checkpoint of another run (it differs in"
                f" {', '.join(other)}): give another directory, or remove this one."
            )
        steps = [
            int(p.name.removeprefix(_STEP))
            for p in self.directory.glob(f"{_STEP}*")
            if _NUMBER.fullmatch(p.name.removeprefix(_STEP)) and p.is_dir() and not p.is_symlink()
        ]
        return max(steps, default=None)

    def save(self, made: Accelerator, state: RunState, step: int, last: bool = False) -> None:
        """Where it is time to, or at the `last` step: write, then remove the older ones."""
        if self.directory is None or not (last or step % self.every == 0):
            return
        place, part = self.directory / f"{_STEP}{step}", self.directory / f"{_STEP}{step}.part"
        if made.is_main_process:
            text = json.dumps({**self.run, _WEIGHTS: self.weights}, indent=1)
            write_whole(self.directory / _RUN, text)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        made.wait_for_everyone()
        write_state(part / f"process-{made.process_index}", state.take())
        made.wait_for_everyone()
        if made.is_main_process:
            sync_tree(part)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(part, place)
            sync_directory(self.directory)
            for other in self.directory.glob(f"{_STEP}*"):
                if other != place:
                    shutil.rmtree(other, ignore_errors=True)
        made.wait_for_everyone()

    def load(self, made: Accelerator, state: RunState, step: int) -> None:
        """Put the state at `step` back.

        Raises:
            DistillError: it is damaged, or of another format; the model then is as it was.
        """
        assert self.directory is not None
        place = self.directory / f"{_STEP}{step}"
        try:
            state.put(read_state(place / f"process-{made.process_index}"))
        except _DAMAGED as error:
            raise self._damaged(place, error) from error

    def _damaged(self, place: pathlib.Path, error: Exception) -> DistillError:
        return DistillError(
            f"the checkpoint {place} cannot be read ({type(error).__name__}: {error}): remove"
            f" {self.directory}, and the run begins anew."
        )


@torch.no_grad()
def sample(model: nn.Module) -> dict[str, list[float]]:
    """A few entries of each float parameter and buffer, spread over it, in units of its root mean
    square, which comes first. A repair solved again need not give the same last digits, so a run is
    not told from another's by a digest of its weights."""
    found: dict[str, list[float]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().flatten()
            size = float(flat.double().square().mean().sqrt())
            some = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].double() / (size or 1.0)
            found[name] = [size, *some.tolist()]
    return found


def _alike(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    """Up to a hundredth of the root mean square."""
    if one.keys() != other.keys():
        return False
    for name, values in one.items():
        (size, *some), (own_size, *own) = values, other[name]
        if len(some) != len(own) or not math.isclose(size, own_size, rel_tol=0.01, abs_tol=1e-12):
            return False
        if any(
            not math.isclose(a, b, rel_tol=0, abs_tol=0.01) for a, b in zip(some, own, strict=True)
        ):
            return False
    return True
