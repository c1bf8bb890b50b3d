"""Checkpoints of a training run: written whole or not at all, read back only by the same run."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from .losses import DistillError

if TYPE_CHECKING:
    from accelerate import Accelerator

_RUN = "run.json"
_STEP = "step-"


class Checkpoints:
    """The states of one run in a directory, the newest only; None: none are kept.

    `run` identifies it: options and shapes, JSON types. accelerate saves what was prepared and
    registered with it (model, optimizer, schedule, random states).
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None, every: int, run: dict[str, Any]
    ) -> None:
        self.directory = None if directory is None else pathlib.Path(directory)
        self.every, self.run = every, json.loads(json.dumps(run, default=str))

    def newest(self) -> int | None:
        """The step of the newest checkpoint.

        Raises:
            DistillError: the directory holds another run's.
        """
        if self.directory is None or not (self.directory / _RUN).is_file():
            return None
        found = json.loads((self.directory / _RUN).read_text())
        if found != self.run:
            keys = sorted(found.keys() | self.run.keys())
            other = [key for key in keys if found.get(key) != self.run.get(key)]
            raise DistillError(
                f"{self.directory} holds the checkpoint of another run (it differs in"
                f" {', '.join(other)}): give another directory, or remove this one."
            )
        steps = [
            int(p.name.removeprefix(_STEP))
            for p in self.directory.glob(f"{_STEP}*")
            if p.name.removeprefix(_STEP).isdigit()
        ]
        return max(steps, default=None)

    def save(self, accelerator: Accelerator, step: int, last: bool = False) -> None:
        """Where it is time to, or at the `last` step: write, then remove the older ones."""
        if self.directory is None or not (last or step % self.every == 0):
            return
        if accelerator.is_main_process:
            self.directory.mkdir(parents=True, exist_ok=True)
            scratch = self.directory / f"{_RUN}.part"
            scratch.write_text(json.dumps(self.run, indent=1))
            os.replace(scratch, self.directory / _RUN)
        accelerator.wait_for_everyone()
        place, part = self.directory / f"{_STEP}{step}", self.directory / f"{_STEP}{step}.part"
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(place, ignore_errors=True)
            os.replace(part, place)
            for other in self.directory.glob(f"{_STEP}*"):
                if other != place:
                    shutil.rmtree(other, ignore_errors=True)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, step: int) -> None:
        """Put the state at `step` back into everything prepared and registered."""
        assert self.directory is not None
        accelerator.load_state(str(self.directory / f"{_STEP}{step}"))
