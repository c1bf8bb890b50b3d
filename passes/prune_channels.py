"""Remove channels, hidden units and residual width."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

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
    one_factor_each,
    require_known,
    require_matches,
)

HEAD_KINDS = ("head", "kv-head", "query-group")
DEFAULT_KINDS = ("channel", "hidden", "residual")


@dataclasses.dataclass
class PruneChannels(Pass):
    """Plan the removal of the lowest-scored entries of channel, hidden and residual dimensions.

    `ratio`: the share removed of every dimension, or a mapping from pattern to share (first match
    counts, others are left alone). `round_to`: keep a multiple of it (nearest; never 0, never above
    the original). `include`: patterns on names, kinds, tensors or modules; replaces the default
    kinds, so `include="head-dim"` reaches those. `exclude`: patterns left alone. `exact_only`:
    leave norm-coupled dimensions alone. `ranking`: "local" takes the share of each dimension,
    "global" takes the lowest normalised scores of all, at most `max_ratio` of one. Of dimensions
    that share a product one is pruned, unless named by include. Raises PlanError when nothing would
    go.
    """

    ratio: float | Mapping[str, float] | None = None
    round_to: int = 1
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    exact_only: bool = False
    ranking: str = "local"
    max_ratio: float = 0.9

    name: ClassVar[str] = "prune-channels"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("plan",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        ratios = self.ratio.values() if isinstance(self.ratio, Mapping) else [self.ratio]
        for ratio in ratios:
            if ratio is not None:
                check_ratio(ratio)
        if self.round_to < 1:
            raise PlanError(f"round_to is a positive integer, not {self.round_to}.")
        if self.ranking not in ("local", "global"):
            raise PlanError(f"ranking is 'local' or 'global', not {self.ranking!r}.")

    def run(self, state: Compilation) -> PassResult:
        chosen = self._chosen(state)
        if not chosen and state.widths is not None:
            return PassResult(False, "no dimension but heads")
        if not chosen:
            raise PlanError(
                "PruneChannels found no dimension to prune; widen include, or see "
                "`graph.explain()` for what is blocked and why."
            )
        assert state.scores is not None
        removed = {}
        for d, keep in self._widths(state, chosen).items():
            dimension = state.graph.dimensions[d]
            alive = self._alive(state, dimension)
            entries = lowest(state.scores[d] + (~alive) * -1e30, dimension.size - keep)
            gone = state.plan.remove(d, entries)
            if gone:
                removed[d] = gone
        if not removed and self.ratio != 0 and state.widths is None:
            raise PlanError(
                f"PruneChannels removes nothing: ratio {self.ratio} with round_to {self.round_to} "
                "rounds every width to what it was; lower round_to or raise the ratio."
            )
        total = sum(d.size for d in chosen)
        summary = f"{sum(removed.values())} of {total} entries in {len(chosen)} dimensions"
        return PassResult(bool(removed), summary, {"removed": removed})

    def _alive(self, state: Compilation, d: Dimension) -> Tensor:
        """Entries an earlier pass has not planned away: they count towards the share."""
        alive = torch.ones(d.size, dtype=torch.bool)
        if d.name in state.plan.kept:
            alive[:] = False
            alive[state.plan.kept[d.name]] = True
        return alive

    def _chosen(self, state: Compilation) -> list[Dimension]:
        free = list(state.graph.prunable.values())
        include, exclude = as_patterns(self.include), as_patterns(self.exclude)
        every = list(state.graph.whole.prunable.values())  # branches that went had some
        require_matches(every, include)
        require_known(state.graph, exclude)
        if isinstance(self.ratio, Mapping):
            require_matches(every, list(self.ratio))
            include = include or tuple(self.ratio)
        if state.widths is not None:  # allocation chose already; heads are PruneHeads' part
            return [d for d in free if d.name in state.widths and d.kind not in HEAD_KINDS]
        chosen = [d for d in free if (matches(d, include) if include else d.kind in DEFAULT_KINDS)]
        chosen = [d for d in chosen if not matches(d, exclude) and d.name not in state.unscored]
        if self.exact_only:
            chosen = [d for d in chosen if d.exact]
        return one_factor_each(chosen, list(state.plan.kept), include)

    def _widths(self, state: Compilation, chosen: list[Dimension]) -> dict[str, int]:
        if state.widths is not None:
            if self.ratio is not None:
                raise PlanError(
                    "PruneChannels got a ratio although widths are allocated; leave it out."
                )
            return {d.name: max(d.minimum, state.widths[d.name]) for d in chosen}
        if self.ratio is None:
            raise PlanError(
                "PruneChannels needs a ratio (the share removed), or AllocateWidths before it."
            )
        if self.ranking == "global" and not isinstance(self.ratio, Mapping):
            return self._global(state, chosen, self.ratio)
        return {d.name: kept_count(d, self._ratio(d), self.round_to) for d in chosen}

    def _ratio(self, d: Dimension) -> float:
        if not isinstance(self.ratio, Mapping):
            assert self.ratio is not None
            return self.ratio
        return next((r for p, r in self.ratio.items() if matches(d, [p])), 0.0)

    def _global(self, state: Compilation, chosen: list[Dimension], ratio: float) -> dict[str, int]:
        assert state.scores is not None
        pooled = torch.cat([state.scores[d.name] for d in chosen])
        count = round(ratio * len(pooled))
        threshold = pooled.sort().values[count - 1] if count else float("-inf")
        widths: dict[str, int] = {}
        for d in chosen:
            share = float((state.scores[d.name] <= threshold).double().mean())
            widths[d.name] = kept_count(d, min(share, self.max_ratio), self.round_to)
        return widths
