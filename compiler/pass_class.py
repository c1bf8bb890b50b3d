"""What a pass is: one step of a pipeline, and what it says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from .compilation import Compilation
from .errors import PlanError
from .option_types import CheckedOptions


@dataclasses.dataclass
class PassResult:
    """What one pass did.

    `summary` is one line for people; `details` is what the report stores (JSON types only).
    """

    changed: bool
    summary: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class Pass(metaclass=CheckedOptions):
    """One step of a pipeline. Subclass as a dataclass: its fields are its options.

    `needs` and `provides` name facts about the compilation (`facts.Fact`: "scores", "widths",
    "plan", "dense", ...), `forbids` those that must not hold yet ("dense": the graph has been
    rewritten). `run` reads and extends the compilation, writes to no tensor of the original, and
    may raise any `PrunecError`; the manager verifies all of that after it returns, whatever it
    says. Options that the annotations do not fit raise ArgumentError.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    forbids: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Compilation) -> PassResult:
        raise PlanError(f"{type(self).__name__} does not say what it does: give it a method run.")

    def options(self) -> dict[str, Any]:
        """The options as JSON types, for the report; a data loader becomes its type's name, and a
        field `calibration`, which is data and no option, is left out."""
        if not dataclasses.is_dataclass(self):
            return {}
        names = [f.name for f in dataclasses.fields(self) if f.name != "calibration"]
        values = {name: getattr(self, name) for name in names}
        return {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 32:
        return [_plain(v) for v in value]
    if isinstance(value, dict) and len(value) <= 32:
        return {str(k): _plain(v) for k, v in value.items()}
    return type(value).__name__
