"""What can be refused of `prunec compile` by its options alone, before MODEL is opened."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from torch import nn

from ..device import check_device
from ..emit.class_needs import check_mode
from ..errors import PlanError, SourceError
from ..passmanager import check_order
from ..preconditions import refuse_unwritable
from ..recipe import build_pipeline, read_recipe
from ..target import Target

if TYPE_CHECKING:
    from .compile import CompileOptions

_INT8 = {"int8": "dynamic", "int8-static": "static"}


@dataclasses.dataclass(frozen=True)
class Emitted:
    """What is written besides the torch artifact."""

    onnx: bool
    int8: str | None

    @property
    def onnxruntime(self) -> bool:
        """Whether something is that onnxruntime has to run."""
        return self.onnx or self.int8 is not None


def emitted_files(text: str) -> Emitted:
    """Read `--emit`. Raises PlanError."""
    words = {word.strip() for word in text.split(",")}
    int8 = [_INT8[word] for word in sorted(words & _INT8.keys())]
    if not words <= {"torch", "onnx", *_INT8} or len(int8) > 1:
        raise PlanError(
            "--emit takes torch, onnx, and int8 or int8-static, with commas between them, not "
            f"'{text}'."
        )
    return Emitted("onnx" in words, int8[0] if int8 else None)


def refuse_options(options: CompileOptions, target: Target) -> None:
    """Raise PrunecError for a device that is not here, a recipe or options of passes that do not
    hold, columns that are none, a checkpoint that cannot be written, a number that is none."""
    check_device(options.device)
    check_mode(options.keep_class)
    column_roles(options.columns)
    for name in ("floor", "depth", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise PlanError(f"--{name.replace('_', '-')} {value} is no number to go by.")
    _refuse_pipeline(options, target)
    if options.checkpoint is not None:
        refuse_unwritable(options.checkpoint, "--checkpoint")


def _refuse_pipeline(options: CompileOptions, target: Target) -> None:
    """Build the passes once, with stand-ins for the data that they will be given."""
    given = [None] if options.data is not None else None
    trains = options.steps != 0 and options.sweep is None
    supplies = {
        "target": target,
        "train": given if trains else None,
        "calibration": given,
        "device": options.device,
        "checkpoint": options.checkpoint,
        "keep_class": options.keep_class,
    }
    chosen = pass_options(options)
    if options.sweep is not None:
        chosen.pop("distill", None)
    check_order(build_pipeline(read_recipe(options.recipe), supplies, chosen)[0])


def column_roles(columns: list[str] | None) -> dict[str, str]:
    """`--column ROLE=COLUMN`, by role. Raises SourceError."""
    found: dict[str, str] = {}
    for entry in columns or ():
        role, equals, column = entry.partition("=")
        if not equals or not column:
            raise SourceError(f"--column {entry} is not ROLE=COLUMN, as in label=stars.")
        found[role] = column
    return found


def least_bytes(model: nn.Module, target: Target) -> int:
    """What the weights take on disk at least: the share that is kept, where the target is one."""
    if target.kind not in ("params", "bytes"):
        return 0
    return int(target.value * sum(p.numel() * p.element_size() for p in model.parameters()))


def pass_options(options: CompileOptions) -> dict[str, dict[str, Any]]:
    """The options of passes that the command line gives."""
    allocate: dict[str, Any] = {}
    if options.round_to is not None:
        allocate["round_to"] = options.round_to
    if options.exclude:
        allocate["exclude"] = options.exclude
    if options.uniform:
        allocate["uniform"] = True
    if options.depth:
        allocate["depth"] = options.depth
    if options.best_effort:
        allocate["best_effort"] = True
    distill: dict[str, Any] = {}
    if options.steps:
        distill["steps"] = options.steps
    if options.learning_rate is not None:
        distill["learning_rate"] = options.learning_rate
    chosen = {"allocate-widths": allocate, "distill": distill}
    return {name: own for name, own in chosen.items() if own}
