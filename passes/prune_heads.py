"""Remove whole attention heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from ..compiler.compilation import Compilation
from ..compiler.errors import PlanError
from ..compiler.inference.dimensions import Dimension
from ..compiler.pass_class import Pass, PassResult
from ..compiler.rewrite.selection import (
    as_patterns,
    check_ratio,
    kept_count,
    lowest,
    matches,
    require_known,
    require_matches,
)

HEAD_KINDS = ("head", "kv-head", "query-group")


@dataclasses.dataclass
class PruneHeads(Pass):
    """Plan the removal of the `ratio` lowest-scored heads of every attention.

    Under grouped-query attention `unit="kv-head"` (default) removes whole groups, a key-value head
    with its query heads; `unit="query-group"` removes one query head per group and keeps the
    key-value heads. `include` / `exclude`: patterns on names, kinds, tensors or modules.
    `exact_only`: leave heads alone that a norm runs over. Without `ratio` the widths that
    AllocateWidths set are used. A model without heads passes; raises PlanError when there are heads
    and none would go.
    """

    ratio: float | None = None
    unit: str = "kv-head"
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    exact_only: bool = False

    name: ClassVar[str] = "prune-heads"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("plan",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        if self.unit not in ("kv-head", "query-group"):
            raise PlanError(f"unit is 'kv-head' or 'query-group', not {self.unit!r}.")
        if self.ratio is not None:
            check_ratio(self.ratio)

    def run(self, state: Compilation) -> PassResult:
        chosen = self._chosen(state)
        if not chosen and (state.widths is not None or not _heads(state)):
            return PassResult(False, "no attention heads")
        if not chosen:
            raise PlanError(
                f"PruneHeads found no attention heads to prune: exclude and exact_only leave none "
                f"of {', '.join(d.name for d in _heads(state)[:5])}; widen them, or leave the pass "
                "out."
            )
        removed = {}
        assert state.scores is not None
        for d in chosen:
            keep = width_for(state, d, self.ratio, "PruneHeads")
            gone = state.plan.remove(d.name, lowest(state.scores[d.name], d.size - keep))
            if gone:
                removed[d.name] = gone
        if not removed and self.ratio != 0 and state.widths is None:
            sizes = sorted({d.size for d in chosen})
            raise PlanError(
                f"PruneHeads removes nothing: a ratio of {self.ratio} of {sizes} heads rounds to "
                "none; raise the ratio."
            )
        total = sum(d.size for d in chosen)
        summary = f"{sum(removed.values())} of {total} heads in {len(chosen)} attentions"
        return PassResult(bool(removed), summary, {"removed": removed})

    def _chosen(self, state: Compilation) -> list[Dimension]:
        free = [d for d in state.graph.prunable.values() if d.name not in state.unscored]
        heads = [d for d in free if d.kind in HEAD_KINDS]
        include, exclude = as_patterns(self.include), as_patterns(self.exclude)
        require_matches(_heads(state), include)
        require_known(state.graph, exclude)
        kinds = {d.name: d.kind for d in heads}

        def unit(d: Dimension) -> bool:
            grouped = {kinds.get(p) for p in d.partners} & {"kv-head", "query-group"}
            return d.kind == "head" or d.kind == self.unit or not grouped

        heads = [d for d in heads if unit(d)]
        if include:
            heads = [d for d in heads if matches(d, include)]
        return [d for d in heads if not matches(d, exclude) and (d.exact or not self.exact_only)]


def _heads(state: Compilation) -> list[Dimension]:
    """All prunable heads, those of branches that went too."""
    return [d for d in state.graph.whole.prunable.values() if d.kind in HEAD_KINDS]


def width_for(state: Compilation, d: Dimension, ratio: float | None, who: str) -> int:
    """Entries to keep: by ratio or by allocated widths; exactly one of the two must be given."""
    if state.widths is not None:
        if ratio is not None:
            raise PlanError(f"{who} got a ratio although widths are allocated; leave it out.")
        return max(d.minimum, state.widths.get(d.name, d.size))
    if ratio is None:
        raise PlanError(f"{who} needs a ratio (the share removed), or AllocateWidths before it.")
    return kept_count(d, ratio)
