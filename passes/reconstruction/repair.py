"""The repair of one model: its consumers in order, each solved on what the repaired ones give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..calibration.consumers import Consumer, columns, find_consumers
from ..calibration.moments import Moments, wide
from ..calibration.outputs import output_error
from ..calibration.progress import shown
from .bias import BiasPlace, add_bias, find_place
from .least_squares import best_ridge, best_shift, solve
from .targets import Comparison

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation
    from ..reconstruct import Reconstruct


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one layer: `kind` is "least squares", "bias", "exact" (nothing to repair) or
    "kept"; the errors are sums of squares over the rows that were read."""

    kind: str
    rows: int = 0
    before: float = 0.0
    after: float = 0.0
    ridge: float | None = 0.0
    note: str = ""

    @property
    def changed(self) -> bool:
        return self.kind in ("least squares", "bias")

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in ("", 0, 0.0)}


class Repair:
    """Changes the dense program's tensors in place, which both back ends share."""

    def __init__(
        self, state: Compilation, batches: Sequence[Sequence[Any]], options: Reconstruct
    ) -> None:
        assert state.dense is not None
        self.state, self.options = state, options
        self.tensors = state.dense.program.tensors
        self.generator = torch.Generator().manual_seed(options.seed)
        contractions = dict.fromkeys(
            sink.node.name for sink in state.graph.inference.sinks if sink.weight is not None
        )
        self.consumers, self.reasons = find_consumers(state.dense.program, list(contractions))
        self.comparison = Comparison(state, batches, self.consumers)
        self.outcomes: dict[str, Outcome] = {}
        self.biases_added: list[str] = []
        self.undone = False
        self._before: dict[str, Tensor] = {}

    def run(self) -> tuple[float | None, float | None]:
        """Repair every consumer; gives the error of the model's outputs before and after."""
        before = output_error(self.state, self.comparison.batches)
        for consumer in shown(self.consumers, "reconstruct", self.options.progress):
            reason = self._scaled(consumer)
            if reason:
                self.reasons.update({node.name: reason for node in consumer.nodes})
                continue
            outcome = self.outcomes[consumer.weight] = self._repair(consumer)
            if outcome.changed and len(consumer.nodes) > 1:
                self.comparison.restart()
        after = output_error(self.state, self.comparison.batches)
        if before is not None and after is not None and not after < before and self._before:
            for name, old in self._before.items():
                self.tensors[name].detach().copy_(old)
            self.outcomes = {
                name: dataclasses.replace(o, kind="kept", after=o.before) if o.changed else o
                for name, o in self.outcomes.items()
            }
            self.undone, after = True, before
        return before, after

    def _scaled(self, consumer: Consumer) -> str:
        """Where a head's scale was moved into the weight, its output is not the original's."""
        known = {consumer.weight, *self.state.graph.aliases.get(consumer.weight, ())}
        return (
            "its weight holds an attention's scale" if known & set(self.state.plan.scales) else ""
        )

    def _repair(self, consumer: Consumer) -> Outcome:
        place = find_place(self.state, consumer, self.options.add_bias)
        note = place if isinstance(place, str) else ""
        bias = place if isinstance(place, BiasPlace) else None
        constant = bias.tensor if bias is not None and bias.behind else None
        rows, differs = self.comparison.off(consumer, constant)
        if not differs:
            return Outcome("exact", rows)
        inner, outer = columns(self.tensors[consumer.weight], consumer)
        limit = max(self.options.rows, self.options.rows_per_input * inner)
        fits = 2 * 8 * consumer.groups * inner * (inner + outer) <= self.options.memory
        fits = fits and self.options.weights
        fit, held_out = self.comparison.moments(
            consumer, constant, limit / max(1, rows), self.generator, second=fits
        )
        moments = fit + held_out
        if not moments.finite:
            return Outcome("kept", moments.count, note="its rows hold values that are not finite")
        ridge, why = self._ridge(fit, held_out, bias is not None)
        change = None if ridge is None else solve(moments, ridge, bias is not None)
        outcome = self._apply(consumer, bias, moments, change, "; ".join(filter(None, (why, note))))
        return dataclasses.replace(outcome, ridge=ridge if change is not None else 0.0)

    def _ridge(self, fit: Moments, held_out: Moments, bias: bool) -> tuple[float | None, str]:
        """The ridge to solve with, or None and why the weights stay."""
        count = fit.count + held_out.count
        inner = fit.x.shape[-1]
        if not self.options.weights:
            return None, ""
        if fit.xx is None:
            return None, "its moments exceed memory"
        if count < inner:
            return None, f"{count} rows for {inner} inputs"
        if self.options.ridge is not None:
            return self.options.ridge, ""
        found = best_ridge(fit, held_out, bias)
        return found, "" if found is not None else "on rows kept apart a bias alone does better"

    def _apply(
        self,
        consumer: Consumer,
        bias: BiasPlace | None,
        moments: Moments,
        change: Tensor | None,
        note: str,
    ) -> Outcome:
        """Take the first of weights with bias, bias alone, and nothing that lowers the error, as
        it is once rounded to the weights' dtype."""
        weight, before = self.tensors[consumer.weight], moments.error()
        for kind, wanted in (("least squares", change), ("bias", None)):
            if kind == "least squares" and wanted is None:
                continue
            exact, new_weight = None, weight
            if wanted is not None:
                old = consumer.matrix(wide(weight.detach()))
                new_weight = consumer.weight_like(old + wanted, weight).to(weight.dtype)
                exact = wide(consumer.matrix(new_weight)) - old
            shift, new_bias = None, None
            if bias is not None:
                vector = self._vector(bias, weight, moments)
                ideal = bias.sign * best_shift(moments, exact).reshape(vector.shape)
                new_bias = (wide(vector) + ideal).to(vector.dtype)
                actual = bias.sign * (wide(new_bias) - wide(vector))
                shift = actual.reshape(moments.e.shape)
            after = moments.error(exact, shift)
            if after < before:
                if wanted is not None:
                    self._set(consumer.weight, new_weight)
                if bias is not None and new_bias is not None:
                    if bias.new:
                        add_bias(self.state, consumer, bias.tensor)
                        self.biases_added.append(bias.tensor)
                    self._set(bias.tensor, new_bias)
                return Outcome(kind, moments.count, before, max(0.0, after), note=note)
        note = f"no change lowers its error; {note}" if note else "no change lowers its error"
        return Outcome("kept", moments.count, before, before, note=note)

    def _vector(self, bias: BiasPlace, weight: Tensor, moments: Moments) -> Tensor:
        """The tensor that holds the bias; zeros where it is yet to be made."""
        if bias.new:
            return torch.zeros(moments.e.numel(), dtype=weight.dtype, device=weight.device)
        return self.tensors[bias.tensor].detach()

    def _set(self, name: str, value: Tensor) -> None:
        tensor = self.tensors[name]
        self._before.setdefault(name, tensor.detach().clone())
        tensor.detach().copy_(value)
