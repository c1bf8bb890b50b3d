"""Rounds: a result that is cut further, with the weights it has by then.

Plan and proof stay those of the original, of which each round removes more; scores are of the
smaller model as it was repaired and trained, and its weights go on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .capture.capture import capture
from .compilation import Compilation
from .errors import PlanError
from .rewrite.correspondence import same_dimensions
from .rewrite.depth import carried
from .rewrite.slicing import Kept, cut_tensor, spread_tensor
from .target import SHARES, Target
from .weights import at_full_size, cut_into

GONE = -torch.finfo(torch.float32).tiny  # the score of what has gone: below all, of no weight


def round_targets(target: Target, rounds: int, original_ms: float | None = None) -> list[Target]:
    """The targets of each round, the last one the target itself: equal factors of what is asked.
    `original_ms`: what the original takes, for a latency. Raises PlanError for an error target."""
    if rounds < 1:
        raise PlanError(f"rounds={rounds!r} must be at least 1.")
    if rounds == 1:
        return [target]
    if target.kind not in (*SHARES, "speedup", "latency_ms"):
        raise PlanError(f"{target} has no steps on the way: leave rounds out.")
    start = original_ms if target.kind == "latency_ms" and original_ms else 1.0
    factors = [(target.value / start) ** (k / rounds) for k in range(1, rounds)]
    return [*(target.with_value(start * f) for f in factors), target]


def continue_from(state: Compilation, earlier: Compilation) -> None:
    """Let the state begin with what an earlier one of the same graph removed. Raises PlanError for
    one that was not rewritten, holds single weights at zero, or is of another graph."""
    if earlier.dense is None:
        raise PlanError("a round continues a dense result: the pipeline has no SparseToDense.")
    if earlier.masks:
        raise PlanError("rounds cannot follow SparsifyWeights: put it into the last one.")
    if earlier.graph.whole is not state.graph.whole:
        raise PlanError("a round continues a result of the same graph; capture the model once.")
    state.graph = state.plan.graph = earlier.graph
    state.plan.dropped = list(earlier.plan.dropped)
    state.plan.kept = {name: list(kept) for name, kept in earlier.plan.kept.items()}
    state.branches = dict(earlier.branches)
    state.earlier, state.round = earlier, earlier.round + 1
    earlier.earlier = None  # its weights have gone on


def smaller_state(earlier: Compilation, calibration: list[list[Any]]) -> Compilation:
    """A compilation of the earlier result's model by itself; the teacher is its original."""
    assert earlier.dense is not None
    program = earlier.graph.program
    outputs = earlier.graph.outputs if earlier.dense.module is not None else None
    graph = capture(
        earlier.dense.model,
        program.args,
        kwargs=program.kwargs,
        outputs=outputs,
        untie_tables=earlier.graph.untie_tables,
        mode="auto" if earlier.graph.sides else "eval",
    )
    calls = [pytree.tree_unflatten(list(flat), program.in_spec) for flat in calibration]
    state = Compilation(graph, [graph.program.flat_inputs(*call, check=False) for call in calls])
    state.teacher = earlier.teacher
    return state


def take_scores(state: Compilation, smaller: Compilation) -> None:
    """Scores and errors of the earlier result's model, as those of the original's dimensions; what
    has gone already goes first and costs nothing."""
    earlier = state.earlier
    assert earlier is not None
    assert smaller.scores is not None
    kept = _kept_now(state, earlier)
    original = earlier.plan.thinning.original if earlier.dense and earlier.dense.module else str
    became = same_dimensions(state.graph, smaller.graph, kept, original)
    state.scores, state.errors = {}, {} if smaller.errors is not None else None
    for name, d in state.graph.prunable.items():
        stay = kept.get(d.var, torch.arange(d.size)) if d.var is not None else torch.arange(d.size)
        own = [s.name for s in became[name] if s.size == len(stay) and s.name in smaller.scores]
        scores = sum((smaller.scores[s].cpu() for s in own), torch.zeros(len(stay)))
        state.scores[name] = torch.full((d.size,), GONE, dtype=scores.dtype)
        state.scores[name][stay] = scores if own else torch.ones_like(scores)
        if not own:
            state.unscored.add(name)
            state.notes.append(f"'{name}' has no score in the smaller model: it stays as it is")
        known = [s for s in own if s in (smaller.errors or {})]
        if state.errors is not None and known:
            state.errors[name] = _widened(
                [smaller.errors[s].cpu() for s in known],  # type: ignore[index]
                d.size,
            )


def _kept_now(state: Compilation, earlier: Compilation) -> Kept:
    """What the earlier result kept, by the dimensions there are now: branches may have gone."""
    names = {d.var: name for name, d in earlier.graph.dimensions.items()}
    before = {names[var]: own.tolist() for var, own in earlier.plan.combined().items()}
    by_name = state.graph.dimensions
    now = carried(before, earlier.graph, state.graph)
    return {by_name[name].var: torch.tensor(own) for name, own in now.items()}  # type: ignore[misc]


def _widened(curves: list[Tensor], size: int) -> Tensor:
    """Errors by width up to what is left, nothing above."""
    total = torch.stack([c.double() for c in curves]).sum(0)
    return torch.cat([total, total.new_zeros(size + 1 - len(total))])


@torch.no_grad()
def carry_weights(state: Compilation) -> None:
    """Give the dense model the weights that the earlier result has; and what the rewrite has folded
    into biases since then (the means of branches, constants of dead entries)."""
    earlier = state.earlier
    if earlier is None:
        return
    assert state.dense is not None
    assert earlier.dense is not None
    before, now = earlier.dense.program.tensors, state.dense.program.tensors
    rest = set(cut_into(state, at_full_size(earlier)))
    for name in rest & before.keys():
        if now[name].is_floating_point() and now[name].shape == before[name].shape:
            added = _folded(state, name) - _folded(earlier, name)
            now[name].detach().copy_(before[name] + added.to(now[name].device))
    for name in (state.plan.constants.keys() | earlier.plan.constants.keys()) & now.keys() - rest:
        terms, kept = state.graph.inference.tensors[name], state.plan.combined()
        former = earlier.graph.inference.tensors[name], earlier.plan.combined()
        had = cut_tensor(spread_tensor(_folded(earlier, name), *former), terms, kept)
        now[name].detach().add_((_folded(state, name) - had).to(now[name].device))


def _folded(state: Compilation, name: str) -> Tensor:
    """What the rewrite has added to a tensor of the dense model, before any training."""
    assert state.dense is not None
    own, held = state.dense.program.tensors[name], state.plan.constants.get(name)
    if held is None or name in state.plan.scales:
        return torch.zeros_like(own, device="cpu")
    original = state.graph.program.tensors.get(name)
    if original is None:
        return held
    cut = cut_tensor(original, state.graph.inference.tensors[name], state.plan.combined())
    return held - cut.detach().cpu()


def sizes_left(state: Compilation) -> dict[str, int]:
    """How many entries each dimension still has after the earlier rounds."""
    kept = state.plan.kept if state.earlier is not None else {}
    return {n: len(kept[n]) if n in kept else d.size for n, d in state.graph.prunable.items()}
