"""Optimal brain surgeon by entry: what goes next, what the rest makes up for, what it costs.

Sources: Hassibi & Stork 1993 (the saliency); ZipLM (Kurtic et al. 2023, eqs. 3-5) for blocks of
columns; the greedy order is exact within a block of candidates, see `_cheapest`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibration.finite import not_finite
from .readings import entry_columns

SPARE = 2  # candidates of a step, times the entries it takes
REDUNDANT = 1e-10  # relative squared error of what is removed before the ridge counts
NO_RIDGE = 1e-10  # below, the inverse of what is singular loses its digits in double
_LEAST, _ATTEMPTS = 1e-12, 20  # the last ridge makes any finite moments definite
_SHRINK = 0.7  # of the columns alive: below, the others' rows are dropped


@dataclasses.dataclass
class Problem:
    """One input and all that is made of it by linear maps.

    `gram` [D, D]: covariance of the input; `weight` [D, O]: the maps, scaled so that the sum of
    squares of each layer's output is 1; `inputs` int64 [D] and `outputs` int64 [O]: the entry that
    owns each, -1 for none. What is made for an entry that is gone does not count.
    """

    gram: Tensor
    weight: Tensor
    inputs: Tensor
    outputs: Tensor


def eliminate(
    problems: Sequence[Problem], fixed: Tensor, ridge: float, step: int, minimum: int = 1
) -> tuple[list[int], list[float]]:
    """The entries in the order in which they go, down to `minimum`, and the sum over all problems
    of relative squared errors after each.

    `fixed` [size]: an error of each entry beside the problems. After each step the inputs that are
    left take over what they can. First go the entries that nothing is lost with, by the moments as
    they are; then, with `ridge` times the mean variance added to them, `step` entries at a time.
    """
    if not all(bool(t.isfinite().all()) for p in problems for t in (p.gram, p.weight)):
        raise not_finite("the covariance of a layer's input, or its weight,")
    size = len(fixed)
    order: list[int] = []
    errors: list[float] = []
    fixed = fixed.to(problems[0].gram.device) if problems else fixed
    alive = torch.ones(size, dtype=torch.bool, device=fixed.device)
    for damping, limit in ((NO_RIDGE, REDUNDANT), (ridge, float("inf"))):
        systems = [_System(p, size, damping) for p in problems]
        base = errors[-1] if errors else 0.0
        while int(alive.sum()) > minimum:
            count = min(step, int(alive.sum()) - minimum)
            gone, costs = _cheapest(systems, fixed, alive, count, limit - base)
            if not gone:
                break
            for entry, cost in zip(gone, costs, strict=True):
                base += cost
                order.append(entry)
                errors.append(base)
            alive[gone] = False
            for system in systems:
                system.remove(gone)
        problems = [s.left() for s in systems]
    return order, errors


def _cheapest(
    systems: Sequence[_System], fixed: Tensor, alive: Tensor, count: int, limit: float
) -> tuple[list[int], list[float]]:
    """The next `count` entries and the cost of each, at most `limit` together.

    The cheapest candidates form a block, in which each removal changes the cost of the others as it
    would in the whole system: of two equal channels one is free, and then the other is not.
    """
    costs = sum((s.costs() for s in systems), fixed)
    costs = costs.masked_fill(~alive, float("inf"))
    candidates = costs.argsort(stable=True)[: min(SPARE * count, int(alive.sum()))]
    outside = costs.clone()
    outside[candidates] = float("inf")
    bar = float(outside.min()) if len(candidates) < int(alive.sum()) else float("inf")
    blocks = [s.block(candidates) for s in systems if bool((s.columns[candidates] >= 0).any())]
    taken: list[int] = []
    paid: list[float] = []
    open_ = torch.ones_like(candidates, dtype=torch.bool)
    now, parts = costs[candidates], [b.costs() for b in blocks]
    held = [(b.columns >= 0).any(1).tolist() for b in blocks]
    while len(taken) < count:
        i = int(now.masked_fill(~open_, float("inf")).argmin())
        cost = max(0.0, float(now[i]))
        if sum(paid) + cost > limit or (taken and cost > bar):
            break
        taken.append(int(candidates[i]))
        paid.append(cost)
        open_[i] = False
        if len(taken) < count and bool(open_.any()):
            for j, block in enumerate(blocks):
                if held[j][i]:  # a wide layer has many blocks, and an entry columns in one of them
                    block.remove(i)
                    parts[j] = block.costs()
            now = fixed[candidates] + _sum(parts, fixed[candidates])
    return taken, paid


def _sum(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(parts)).sum(0) if parts else torch.zeros_like(like)


class _System:
    """The inverse of one problem's damped moments and its weights, as entries go."""

    def __init__(self, problem: Problem, size: int, ridge: float) -> None:
        self.size, self.ridge = size, ridge
        self.gram, self.weight = problem.gram, problem.weight.clone()
        self.inputs, self.outputs = problem.inputs, problem.outputs
        self.inverse = _inverse(problem.gram, ridge)
        self.columns = entry_columns(self.inputs, size)

    def costs(self) -> Tensor:
        """The error that each entry's removal adds, [size]; 0 for one that is gone."""
        return _costs(self.inverse, self.weight, self.columns)

    def block(self, entries: Tensor) -> _Block:
        """The candidates' own part of the system."""
        columns = self.columns[entries]
        own = columns[columns >= 0]
        places = torch.full_like(columns, -1)
        places[columns >= 0] = torch.arange(len(own), device=own.device)
        return _Block(self.inverse[own][:, own], self.weight[own], places)

    def remove(self, entries: Sequence[int]) -> None:
        """Take the entries out; what is left makes up for them."""
        columns = self.columns[entries]
        own = columns[columns >= 0]
        if len(own):
            _eliminate(self.inverse, self.weight, own)
            self.columns[entries] = -1
            self.inputs = self.inputs.clone()
            self.inputs[own] = -2
        gone = torch.zeros(self.size + 1, dtype=torch.bool, device=self.weight.device)
        gone[list(entries)] = True
        self.weight[:, gone[self.outputs]] = 0
        left = self.inputs != -2
        if int(left.sum()) < _SHRINK * len(left):
            keep = left.nonzero().reshape(-1)
            self.gram = self.gram[keep][:, keep]
            self.inverse = self.inverse[keep][:, keep]
            self.weight, self.inputs = self.weight[keep], self.inputs[keep]
            self.columns = entry_columns(self.inputs, self.size)

    def left(self) -> Problem:
        """The problem of what is left."""
        keep = (self.inputs != -2).nonzero().reshape(-1)
        gram = self.gram[keep][:, keep]
        return Problem(gram, self.weight[keep], self.inputs[keep], self.outputs)


class _Block:
    """Some candidates' part of a system: small enough to take entries out one by one."""

    def __init__(self, inverse: Tensor, weight: Tensor, columns: Tensor) -> None:
        self.inverse, self.weight, self.columns = inverse.clone(), weight.clone(), columns.clone()

    def costs(self) -> Tensor:
        return _costs(self.inverse, self.weight, self.columns)

    def remove(self, candidate: int) -> None:
        own = self.columns[candidate]
        own = own[own >= 0]
        if len(own):
            _eliminate(self.inverse, self.weight, own)
            self.columns[candidate] = -1


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """(G + ridge * mean(diag G) I)^-1; a larger ridge where that is not definite."""
    scale = float(gram.diagonal().mean()) if len(gram) else 0.0
    scale = scale if scale > 0 else 1.0  # inputs that never move: any ridge will do
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_ATTEMPTS):
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * eye)
        if not bool(failed):
            return torch.cholesky_inverse(factor)
        ridge = max(ridge * 10, _LEAST)
    raise not_finite("the covariance of a layer's input")


def _costs(inverse: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """tr(W_Bᵀ (H⁻¹_BB)⁻¹ W_B) for each row B of `columns` [n, k]: [n]."""
    if columns.shape[1] == 0:
        return torch.zeros(len(columns), dtype=weight.dtype, device=weight.device)
    held = columns >= 0
    at = columns.clamp_min(0)
    if columns.shape[1] == 1:
        one = at[:, 0]
        found = weight[one].square().sum(1) / inverse.diagonal()[one]
        return torch.where(held[:, 0], found, 0.0)
    eye = torch.eye(columns.shape[1], dtype=inverse.dtype, device=inverse.device)
    pairs = held[:, :, None] & held[:, None]
    blocks = torch.where(pairs, inverse[at[:, :, None], at[:, None]], eye)
    rows = weight[at] * held[:, :, None]
    factor, failed = torch.linalg.cholesky_ex(blocks)
    if bool(failed.any()):
        factor, _ = torch.linalg.cholesky_ex(blocks + 1e-12 * blocks.diagonal(0, 1, 2).amax() * eye)
    half = torch.linalg.solve_triangular(factor, rows, upper=False)
    return half.square().sum((1, 2)).nan_to_num(posinf=float("inf"))


def _eliminate(inverse: Tensor, weight: Tensor, own: Tensor) -> None:
    """W -= H⁻¹[:,B] (H⁻¹_BB)⁻¹ W_B and H⁻¹ -= H⁻¹[:,B] (H⁻¹_BB)⁻¹ H⁻¹[B,:], in place."""
    rows = inverse[own]
    block = rows[:, own]
    spread = block.diagonal().amax().clamp_min(1e-300)
    eye = torch.eye(len(own), dtype=block.dtype, device=block.device)
    solved = torch.linalg.solve(block + 1e-14 * spread * eye, torch.cat([rows, weight[own]], 1))
    weight -= rows.mT @ solved[:, inverse.shape[1] :]
    inverse -= rows.mT @ solved[:, : inverse.shape[1]]
    inverse[own] = 0
    inverse[:, own] = 0
    weight[own] = 0
