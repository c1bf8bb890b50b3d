"""The smaller model's layers against the original's: what each reads, and by how much it is off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ...compiler.ir.program import Program
from ...compiler.ir.terms import variables
from ...compiler.rewrite.depth import stands_for
from ...compiler.rewrite.slicing import term_indices
from ..calibration.consumers import Consumer, columns
from ..calibration.finite import refuse_rows
from ..calibration.moments import wide
from ..calibration.rows import choice
from ..calibration.streams import Stream
from ..calibration.tokens import TokenMasks
from .held_out import Split
from .sums import find_sum

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation

SAME = 1e-10  # of the energy of the target: the rounding of float32, squared, and some more


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The share of the rows that is read, chosen at random."""

    share: float
    generator: torch.Generator


class Comparison:
    """Both programs on the same batches, the smaller one with the weights it has by then.

    The original gives the targets, at the entries that were kept; the smaller model, repaired so
    far, the inputs. So each layer also makes up for what the ones before it could not. Where its
    output goes into a residual sum, the sum is the target: what the stream is off by counts too.
    Where branches were dropped behind it, the target is the original's value behind those.
    `layers`: all that may be repaired.
    """

    def __init__(
        self,
        state: Compilation,
        batches: Sequence[Sequence[Any]],
        layers: Sequence[Consumer],
    ) -> None:
        assert state.dense is not None
        self.state, self.batches = state, batches
        self.dense: Program = state.dense.program
        self.kept = state.plan.combined()
        self.masks = TokenMasks(self.dense, batches)
        self.terms = {n.name: terms for n, terms in state.graph.inference.terms.items()}
        self.stands_for = stands_for(state.graph, self.dense)
        nodes = {node for consumer in layers for node in consumer.nodes}
        self.sums = {node: find_sum(node, nodes) for node in nodes}
        self.restart()

    def restart(self) -> None:
        """Run both from their inputs again: weights that had been used were changed."""
        self.original = Stream(self.state.graph.whole.program, self.batches)
        self.smaller = Stream(self.dense, self.batches)

    def off(self, consumer: Consumer, constant: str | None) -> tuple[int, bool]:
        """How many rows a consumer has, and whether it gives anything else than the original.

        `constant`: the tensor that a sum behind the consumer adds.
        """
        count, missed, energy = 0, 0.0, 0.0
        for node in consumer.nodes:
            for _, _, error, target in self._errors(consumer, node, constant):
                count += error.numel() // self._outer(consumer)
                missed += float(error.square().sum())
                energy += float(target.square().sum())
        return count, not missed <= SAME * energy

    def moments(
        self, consumer: Consumer, constant: str | None, sampling: Sampling, into: list[Any]
    ) -> int:
        """Count rows of a consumer into two moments, those to fit and those kept apart, over all
        its nodes and without padding; gives how many of them are distinct. `into`: anything with
        `add(x, e)`. Raises PlanError where the original's values are not finite."""
        split = Split(len(self.batches))
        for node in consumer.nodes:
            for batch, x, error, target in self._errors(consumer, node, constant, split.order):
                tokens = self.masks.rows(node, batch, consumer.row_shape(error))
                rows = error.numel() // self._outer(consumer)
                samples = torch.arange(rows) // max(1, rows // max(1, self._samples(error)))
                start = 0
                for inputs, errors in consumer.blocks(x.to(error.device), error):
                    stop = start + inputs.shape[1]
                    own = torch.arange(start, stop)
                    own = own if tokens is None else own[tokens[start:stop].cpu()]
                    some = choice(len(own), sampling.share, sampling.generator)
                    own = own if some is None else own[some]
                    if len(own) < stop - start:
                        chosen = (own - start).to(errors.device)
                        inputs, errors = inputs[:, chosen], errors[:, chosen]
                    if not bool(errors.sum().isfinite()):
                        refuse_rows(target, consumer.weight, batch, "gives in the original")
                    for part, moments in zip(
                        split.deal(batch, inputs, samples[own]), into, strict=True
                    ):
                        whole = bool(part.all())
                        chosen = part.to(errors.device)
                        moments.add(*(t if whole else t[:, chosen] for t in (inputs, errors)))
                    start = stop
        return split.distinct

    def _samples(self, value: Tensor) -> int:
        return value.shape[0] if value.dim() > 1 else 1

    def _errors(
        self,
        consumer: Consumer,
        node: fx.Node,
        constant: str | None,
        order: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Per batch, in this order: its number, what the node reads, target minus result in
        double, the target."""
        if self.smaller.passed(node):
            self.restart()
        total = self.sums[node]
        own = node.name if total is None else total.node.name
        end = self.original.by_name[self.stands_for.get(own, own)]
        if self._lost(end):
            self.restart()
        self.smaller.advance(node)
        self.original.advance(end, through=True)
        for batch in range(len(self.batches)) if order is None else order:
            self.smaller.turn_to(batch)
            self.original.turn_to(batch)
            raw = self.smaller.run_node(node)
            target = wide(self._kept(own, self.original.value_of(end)))
            if total is not None:
                error = target - total.value(self.smaller, node, raw)
                error = total.back(self.smaller, node, raw, error)
                target = wide(raw) + error
            else:
                result = wide(raw)
                if constant is not None:
                    result = result + wide(self.dense.tensors[constant])
                error = target - result
            x = self.smaller.value_of(consumer.input_of(node))
            yield batch, x, error, target

    def _lost(self, end: fx.Node) -> bool:
        """Whether the original has run through a node and does not hold its value any more."""
        self.original.turn_to(0)
        return self.original.passed(end) and end not in self.original.env

    def _kept(self, name: str, value: Tensor) -> Tensor:
        """Of an original's value, what the smaller model has of it at the node of that name."""
        for axis, term in enumerate(self.terms[name]):
            if any(v in self.kept for v in variables(term)):
                value = value.index_select(axis, term_indices(term, self.kept).to(value.device))
        return value

    def _outer(self, consumer: Consumer) -> int:
        weight = self.dense.tensors[consumer.weight]
        return columns(weight, consumer)[1] * consumer.groups
