"""What an allocation is: a width for every dimension, and the branches that go."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Allocation:
    """`widths`: how many entries each dimension keeps, by name. `dropped`: branches that go, by
    name; the widths of dimensions inside them say nothing."""

    widths: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal allocations, and hashable."""
        return tuple(sorted(self.widths.items())), self.dropped
