"""For a dimension the order in which its entries go, and the error after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ...compiler.ir.program import Program
from ..calibration.gram import Gram, split
from ..calibration.moments import wide
from .elimination import Problem, eliminate
from .input_moments import Measured
from .readings import Reading

CANCELLED = 1e-10  # of the energy of a layer's inputs one by one: float32's rounding, squared
STEPS = 128  # of one dimension's elimination, at least, where it has as many entries


@dataclasses.dataclass(frozen=True)
class Curve:
    """`scores` [size]: the error once the entry has gone, so the lowest go first. `errors`
    [size + 1]: the relative squared error with so many entries kept. Both float64."""

    scores: Tensor
    errors: Tensor


def curve(program: Program, found: Measured, ridge: float, step: int | None) -> Curve:
    """By elimination; of inputs without covariances every entry's own variance is what it costs."""
    size = found.dimension.size
    problems: list[Problem] = []
    fixed = torch.zeros(size, dtype=torch.float64)
    for gram, readings in found.readings:
        if gram.full:
            made, beside = _problems(program, gram, readings, size)
            problems += made
            fixed += beside
        else:
            fixed += contributions(program, gram, readings, size)
    order, costs = eliminate(
        problems, fixed, ridge, step or -(-size // STEPS), minimum=found.dimension.minimum
    )
    worst = costs[-1] if costs else 0.0
    scores = torch.full((size,), worst + 1.0, dtype=torch.float64)
    errors = torch.full((size + 1,), max(1.0, worst), dtype=torch.float64)
    errors[size] = 0.0
    for gone, (entry, cost) in enumerate(zip(order, costs, strict=True), start=1):
        scores[entry] = errors[size - gone] = cost
    return Curve(scores, errors)


def _problems(
    program: Program, gram: Gram, readings: Sequence[Reading], size: int
) -> tuple[list[Problem], Tensor]:
    """One problem per group (and block) of the layers that read the input of these covariances;
    and what each entry costs beside them, [size]: the variance that no direction tells."""
    covariance = gram.covariance()
    beside = torch.zeros(size, dtype=torch.float64)
    weights: list[Tensor] = []
    for reading in readings:
        matrix = reading.consumer.matrix(program.tensors[reading.consumer.weight].detach())
        weight, left = _seen(gram, matrix)
        scale = _scale(covariance, weight, float(left.sum()))
        weights.append(weight * scale)
        if gram.reduction is not None:
            owners = _owners(gram, reading)[:, :: gram.reduction.basis.shape[3]].cpu()
            held = owners >= 0
            beside.index_add_(0, owners[held], (left.cpu() * scale**2)[held])
    inputs = split(_owners(gram, readings[0])[:, None], gram.blocks, -1)[:, 0]
    outputs = torch.cat([r.outputs for r in readings], 1).repeat_interleave(gram.blocks, 0)
    problems = [
        Problem(
            covariance[group],
            torch.cat([w[group] for w in weights], 1),
            inputs[group].to(covariance.device),
            outputs[group].to(covariance.device),
        )
        for group in range(len(covariance))
    ]
    return problems, beside


def _seen(gram: Gram, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's weight [G, D, O] for what the covariances are of; and the variance of its outputs
    that this leaves out, per group of columns [G, K]."""
    if gram.reduction is None:
        weight, left = wide(matrix), torch.zeros(len(matrix), 1)
    else:
        weight, left = gram.reduction.weights(matrix)
    return split(weight.mT, gram.blocks).mT, left


def _owners(gram: Gram, reading: Reading) -> Tensor:
    """The entry that owns each column, or each direction: int64 [G, D]."""
    if gram.reduction is None:
        return reading.inputs
    first = gram.reduction.groups.columns[:, 0].to(reading.inputs.device)
    return reading.inputs[:, first].repeat_interleave(gram.reduction.basis.shape[3], 1)


def _scale(covariance: Tensor, weight: Tensor, left: float) -> float:
    """By which the variances of a layer's outputs sum to 1; 0 where its inputs cancel, and its
    output is no more than their rounding."""
    energy = float((weight * (covariance @ weight)).sum()) + left
    apart = float((covariance.diagonal(dim1=1, dim2=2)[..., None] * weight.square()).sum()) + left
    return energy**-0.5 if energy > CANCELLED * apart else 0.0


def contributions(program: Program, gram: Gram, readings: Sequence[Reading], size: int) -> Tensor:
    """What each entry contributes to the variance of the layers' outputs, as if inputs were not
    correlated, as a share of each layer's: float64 [size].

    WIFV of FLAP (An et al. 2024, eq. 5), Var(x_j) |W_:j|², per layer divided by its sum.
    """
    variance = gram.covariance()
    total = torch.zeros(size, dtype=torch.float64)
    for reading in readings:
        weight = reading.consumer.matrix(wide(program.tensors[reading.consumer.weight].detach()))
        each = (variance * weight.square().sum(2)).cpu()
        owned = reading.inputs >= 0
        share = each / each.sum() if float(each.sum()) > 0 else each
        total.index_add_(0, reading.inputs[owned], share[owned])
    return total
