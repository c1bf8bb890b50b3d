"""What a pass is, and the manager that checks the order, runs the passes and verifies each one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar


if TYPE_CHECKING:
    from .compilation import Compilation


@dataclasses.dataclass
class PassResult:
    """What one pass did.

    `summary` is one line for people; `details` is what the report stores (JSON types only).
    """

    changed: bool
    summary: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


class Pass:
    """One step of a pipeline. Subclass as a dataclass: its fields are its options.

    `needs` and `provides` name facts about the compilation: "scores", "widths", "plan", "dense".
    `forbids` names facts that must not hold yet ("dense": the graph has been rewritten).
    `run` may raise any `PrunecError`; the manager verifies the compilation after it returns.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    forbids: ClassVar[tuple[str, ...]] = ()

    def run(self, state: Compilation) -> PassResult:
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    def options(self) -> dict[str, Any]:
        """The options as JSON types, for the report; data loaders and callables become their type's name."""
        if not dataclasses.is_dataclass(self):
            return {}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and len(value) <= 32:
        return [_plain(v) for v in value]
    if isinstance(value, dict) and len(value) <= 32:
        return {str(k): _plain(v) for k, v in value.items()}
    return type(value).__name__
