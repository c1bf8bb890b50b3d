"""What each input that layers read looks like on calibration data, and what it makes of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...compiler.ir.program import Program
from ..calibration.consumers import Consumer, columns
from ..calibration.gram import Gram
from ..calibration.moments import wide
from ..calibration.rows import sample
from ..calibration.streams import Stream
from ..calibration.tokens import TokenMasks
from .elimination import Problem
from .readings import Reading


@dataclasses.dataclass(frozen=True)
class Limits:
    """`rows`, or `rows_per_input` times the inputs, at most of one layer; `memory`: bytes for one
    layer's moments; `seed`: of the choice of rows."""

    rows: int
    rows_per_input: int
    memory: int
    seed: int


class InputMoments:
    """The moments of what layers read in the original model; ask in order of the graph."""

    def __init__(self, program: Program, batches: Sequence[Sequence[Any]], limits: Limits) -> None:
        self.program, self.batches, self.limits = program, batches, limits
        self.stream = Stream(program, batches)
        self.masks = TokenMasks(program, batches)
        self.generator = torch.Generator().manual_seed(limits.seed)

    def gram(self, consumer: Consumer, full: bool) -> Gram:
        """Of the layer's input over all its uses, padding left out. `full`: with covariances, where
        memory allows (three such matrices are held while entries are taken out)."""
        weight = self.program.tensors[consumer.weight].detach()
        inner, _ = columns(weight, consumer)
        full = full and 3 * 8 * consumer.groups * inner * inner <= self.limits.memory
        gram = Gram(consumer.groups, inner, wide(weight[:0]).device, full)
        limit = max(self.limits.rows, self.limits.rows_per_input * inner)
        for node in consumer.nodes:
            if self.stream.passed(node):
                self.stream = Stream(self.program, self.batches)
            self.stream.advance(node)
            share: float | None = None
            for batch in range(len(self.batches)):
                self.stream.turn_to(batch)
                x = self.stream.value_of(consumer.input_of(node))
                y = self.stream.run_node(node)
                if share is None:  # of the rows of all batches, by those of the first
                    rows = y.numel() // y.shape[consumer.channel(y)]
                    share = limit / max(1, rows * len(self.batches) * len(consumer.nodes))
                tokens = self.masks.rows(node, batch, consumer.row_shape(y))
                start = 0
                for inputs, _ in consumer.blocks(x, y):
                    stop = start + inputs.shape[1]
                    if tokens is not None:
                        inputs = inputs[:, tokens[start:stop].to(inputs.device)]
                    gram.add(sample(inputs, inputs, share, self.generator)[0])
                    start = stop
        return gram


def input_of(consumer: Consumer) -> tuple[Any, ...]:
    """Equal for layers that read the same values in the same way."""
    return tuple(consumer.input_of(node) for node in consumer.nodes), consumer.patches


def problems(program: Program, gram: Gram, readings: Sequence[Reading]) -> list[Problem]:
    """One problem per group of the layers that read the input of these covariances."""
    covariance = gram.covariance()
    return [
        Problem(
            covariance[group],
            torch.cat([_scaled(program, covariance, r)[group] for r in readings], 1),
            readings[0].inputs[group].to(covariance.device),
            torch.cat([r.outputs[group] for r in readings]).to(covariance.device),
        )
        for group in range(len(covariance))
    ]


def _scaled(program: Program, covariance: Tensor, reading: Reading) -> Tensor:
    """The layer's weight [G, D, O], by which its outputs' variances sum to 1."""
    weight = reading.consumer.matrix(wide(program.tensors[reading.consumer.weight].detach()))
    energy = float((weight * (covariance @ weight)).sum())
    return weight / energy**0.5 if energy > 0 else weight * 0


def alone(program: Program, gram: Gram, readings: Sequence[Reading], size: int) -> Tensor:
    """What each entry contributes to the variance of the layers' outputs, as if inputs were not
    correlated, as a share of each layer's: float64 [size].

    WIFV of FLAP (An et al. 2024, eq. 5), Var(x_j) |W_:j|², per layer divided by its sum.
    """
    variance = gram.covariance()
    if gram.full:
        variance = variance.diagonal(dim1=1, dim2=2)
    total = torch.zeros(size, dtype=torch.float64)
    for reading in readings:
        weight = reading.consumer.matrix(wide(program.tensors[reading.consumer.weight].detach()))
        each = (variance * weight.square().sum(2)).cpu()
        owned = reading.inputs >= 0
        share = each / each.sum() if float(each.sum()) > 0 else each
        total.index_add_(0, reading.inputs[owned], share[owned])
    return total
