"""The repair of one model: its consumers in order, each solved on what the repaired ones give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...compiler.rewrite.slicing import term_indices
from ..calibration.consumers import Consumer, columns, find_consumers
from ..calibration.moments import Moments, wide
from ..calibration.outputs import output_errors
from ..calibration.progress import shown
from ..calibration.reduction import EXACT, MOMENTS, REDUCED, Groups, Reduction
from .bias import BiasPlace, add_bias, find_place
from .entrance import directions
from .held_out import PART, held_out
from .least_squares import best_shift, solve
from .ridge import LOW_RANK, choose, effective_rank
from .targets import Comparison, Sampling
from .wide import Seen, Telling

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation
    from ..reconstruct import Reconstruct

SWEEPS = 2  # of a layer that is solved through directions: new ones for what is left
_RAISED = 10.0  # a ridge under which a weight grows too far
_ATTEMPTS = 16


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one layer: `kind` is "least squares", "bias", "exact" (nothing to repair) or
    "kept"; the errors are sums of squares over the rows that were read. `rank`: the directions in
    which its `inputs` move on these data; `growth`: of its weight's norm."""

    kind: str
    rows: int = 0
    before: float = 0.0
    after: float = 0.0
    ridge: float | None = 0.0
    note: str = ""
    rank: float | None = None
    inputs: int = 0
    growth: float = 1.0

    @property
    def changed(self) -> bool:
        return self.kind in ("least squares", "bias")

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in ("", 0, 0.0, None)}


@dataclasses.dataclass(frozen=True)
class Poor:
    """Data that say too little: where they enter, at `layer`, they move in `rank` directions of the
    `possible` ones."""

    layer: str
    rank: float
    possible: int


@dataclasses.dataclass
class _Rows:
    """The moments of one layer: of the rows to fit, of those kept apart, and of both."""

    fit: Moments
    apart: Moments
    both: Moments
    distinct: int
    through: Reduction | None = None


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
        self.layers = frozenset(contractions)
        self.poor: Poor | None = None
        self.undone = False
        self.held_out: list[float | None] = [None, None]
        self._before: dict[str, Tensor] = {}

    def run(self) -> tuple[float | None, float | None]:
        """Repair every consumer; gives the error of the model's outputs before and after. All is
        undone where the outputs do not come closer, or not on the batches that are kept apart."""
        batches = self.comparison.batches
        some = [b for b in range(len(batches)) if held_out(b)] if len(batches) >= PART else []
        before, apart = output_errors(self.state, batches, some)
        for consumer in shown(self.consumers, "reconstruct", self.options.progress):
            reason = self._scaled(consumer)
            if reason:
                self.reasons.update({node.name: reason for node in consumer.nodes})
                continue
            outcome = self.outcomes[consumer.weight] = self._repair(consumer)
            if outcome.changed and len(consumer.nodes) > 1:
                self.comparison.restart()
        after, apart_after = output_errors(self.state, batches, some)
        self.held_out = [apart, apart_after]
        if self._before and (_worse(before, after) or _worse(apart, apart_after)):
            for name, old in self._before.items():
                self.tensors[name].detach().copy_(old)
            self.outcomes = {
                name: dataclasses.replace(o, kind="kept", after=o.before, growth=1.0)
                if o.changed
                else o
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
        self._enter(consumer, constant, rows, bias is not None)
        if not differs:
            return Outcome("exact", rows)
        first: Outcome | None = None
        for _ in range(SWEEPS):
            read = self._read(consumer, constant, rows, bias is not None)
            outcome = self._solve(consumer, bias, read, note)
            if first is None:
                first = outcome
            elif outcome.kind == "least squares":
                growth = first.growth * outcome.growth
                first = dataclasses.replace(first, after=outcome.after, growth=growth)
            if read.through is None or outcome.kind != "least squares":
                break
            if len(consumer.nodes) > 1:
                self.comparison.restart()
        assert first is not None
        return first

    def _enter(self, consumer: Consumer, constant: str | None, rows: int, centred: bool) -> None:
        """Judge the data by a layer that they enter by, whether there is anything to repair."""
        if self.options.ridge is not None or consumer.taps > 1:
            return
        value = consumer.input_of(consumer.nodes[0])
        width = columns(self.tensors[consumer.weight], consumer)[0]
        possible = directions(value, width, self.layers, self.tensors)
        if possible is not None:
            moments = self._read(consumer, constant, rows, centred).both
            rank = effective_rank(moments, centred)
            if rank < LOW_RANK * possible:
                self.poor = self.poor or Poor(consumer.weight, rank, possible)

    def _read(
        self, consumer: Consumer, constant: str | None, rows: int, centred: bool
    ) -> _Rows:
        """The moments of a layer, through directions where all of its inputs are too many."""
        weight = self.tensors[consumer.weight]
        inner, outer = columns(weight, consumer)
        device = wide(weight.detach()[:0]).device
        memory = min(self.options.memory, MOMENTS)

        def read(width: int, into: Sequence[Any]) -> int:
            limit = max(self.options.rows, self.options.rows_per_input * width)
            sampling = Sampling(limit / max(1, rows), self.generator)
            return self.comparison.moments(consumer, constant, sampling, list(into))

        def fits(width: int) -> bool:
            return 2 * 8 * consumer.groups * width * (width + outer) <= memory

        through: Reduction | None = None
        width, second = inner, self.options.weights
        if second and not (inner <= EXACT and fits(inner)):
            groups = Groups.even(inner, consumer.taps)
            count = max(1, REDUCED // len(groups.columns))
            taps = groups.columns.shape[1]
            if taps > count and fits(len(groups.columns) * count) and (
                8 * consumer.groups * inner * (taps + outer) <= memory
            ):
                telling = Telling(groups, consumer.groups, outer, device, centred)
                read(taps, [telling, Nothing()])
                through = telling.directions(count)
                width = through.width
        second = second and fits(width) and (width == inner <= EXACT or through is not None)
        both = [Moments(consumer.groups, width, outer, device, second) for _ in range(2)]
        if through is not None:
            distinct = read(width, [Seen(through, m) for m in both])
        else:
            distinct = read(width, both)
        fit, apart = both
        return _Rows(fit, apart, fit + apart, distinct, through)

    def _solve(
        self, consumer: Consumer, bias: BiasPlace | None, rows: _Rows, note: str
    ) -> Outcome:
        if not rows.both.finite:
            return Outcome("kept", rows.both.count, note="its rows hold values that are not finite")
        inner = rows.fit.x.shape[-1]
        centred = bias is not None
        if self.poor is not None:
            # activations raise the rank of few directions, and what they tell is no more
            error, why = rows.both.error(), f"the data are of low rank at {self.poor.layer}"
            rank = effective_rank(rows.both, centred)
            return Outcome("kept", rows.both.count, error, error, None, why, rank, inner)
        if self.options.ridge is None and rows.apart.count == 0:
            error, why = rows.both.error(), f"{rows.distinct} distinct rows, none to keep apart"
            return Outcome("kept", rows.both.count, error, error, None, why, inputs=inner)
        ridge, rank, why = self.options.ridge, None, ""
        change: Tensor | None = None
        if self.options.weights:
            if rows.fit.xx is None:
                ridge, why = None, "its moments exceed memory"
            elif rows.distinct < inner:
                ridge, why = None, f"{rows.distinct} distinct rows for {inner} inputs"
            elif ridge is None:
                choice = choose(rows.fit, rows.apart, centred)
                ridge, rank = choice.ridge, choice.rank
                if ridge is None:
                    why = "on rows kept apart a bias alone does better"
            if ridge is not None:
                change, ridge = self._bounded(consumer, rows, ridge, centred)
                if change is None:
                    why = "no ridge keeps its weight from growing"
        if rows.through is not None:
            through = rows.through.basis.shape
            note = "; ".join(
                filter(None, (note, f"{through[1]} groups of inputs by {through[3]} directions"))
            )
        outcome = self._apply(consumer, bias, rows, change, "; ".join(filter(None, (why, note))))
        ridge = ridge if outcome.kind == "least squares" else None
        return dataclasses.replace(outcome, ridge=ridge, rank=rank, inputs=inner)

    def _bounded(
        self, consumer: Consumer, rows: _Rows, ridge: float, centred: bool
    ) -> tuple[Tensor | None, float]:
        """The change, with a ridge by which the weight's norm is at most `growth` times that of the
        cut or the original weight, whichever is more."""
        most = self.options.growth * max(self._norm(consumer), self._original_norm(consumer))
        for _ in range(_ATTEMPTS):
            change = solve(rows.both, ridge, centred)
            if change is None or self._norm(consumer, self._lifted(rows, change)) <= most:
                return change, ridge
            ridge = max(ridge, 1e-6) * _RAISED
        return None, ridge

    def _lifted(self, rows: _Rows, change: Tensor) -> Tensor:
        """A change as one of all inputs' weights."""
        if rows.through is None:
            return change
        inner = rows.through.groups.columns.max() + 1
        return rows.through.columns(change, int(inner))

    def _norm(self, consumer: Consumer, change: Tensor | None = None) -> float:
        matrix = consumer.matrix(wide(self.tensors[consumer.weight].detach()))
        return float((matrix if change is None else matrix + change).norm())

    def _original_norm(self, consumer: Consumer) -> float:
        """Of the original's weight at the outputs that are left."""
        graph, kept = self.state.graph.whole, self.comparison.kept
        weight = graph.program.tensors.get(consumer.weight)
        terms = graph.inference.tensors.get(consumer.weight)
        if weight is None or terms is None:
            return 0.0
        axis = 1 if consumer.flipped else 0
        chosen = term_indices(terms[axis], kept).to(weight.device)
        return float(wide(weight.detach().index_select(axis, chosen)).norm())

    def _apply(
        self,
        consumer: Consumer,
        bias: BiasPlace | None,
        rows: _Rows,
        change: Tensor | None,
        note: str,
    ) -> Outcome:
        """Take the first of weights with bias, bias alone, and nothing that lowers the error, as
        it is once rounded to the weights' dtype. A bias alone must do so on rows kept apart."""
        moments = rows.both
        weight, before = self.tensors[consumer.weight], moments.error()
        norm = self._norm(consumer)
        for kind, wanted in (("least squares", change), ("bias", None)):
            if kind == "least squares" and wanted is None:
                continue
            exact, new_weight = None, weight
            if wanted is not None:
                old = consumer.matrix(wide(weight.detach()))
                new = old + self._lifted(rows, wanted)
                new_weight = consumer.weight_like(new, weight).to(weight.dtype)
                exact = wanted
                if rows.through is None:
                    exact = wide(consumer.matrix(new_weight)) - old
            elif bias is None or not self._general(rows):
                continue
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
                    if bias.new and bias.tensor not in self.tensors:
                        add_bias(self.state, consumer, bias.tensor)
                        self.biases_added.append(bias.tensor)
                    self._set(bias.tensor, new_bias)
                growth = self._norm(consumer) / norm if norm > 0 else 1.0
                return Outcome(
                    kind, moments.count, before, max(0.0, after), note=note, growth=growth
                )
        note = f"no change lowers its error; {note}" if note else "no change lowers its error"
        return Outcome("kept", moments.count, before, before, note=note)

    def _general(self, rows: _Rows) -> bool:
        """Whether the bias that the rows to fit ask for helps those kept apart, where there are."""
        if rows.apart.count == 0:
            return self.options.ridge is not None
        return rows.apart.error(None, best_shift(rows.fit, None)) < rows.apart.error()

    def _vector(self, bias: BiasPlace, weight: Tensor, moments: Moments) -> Tensor:
        """The tensor that holds the bias; zeros where it is yet to be made."""
        if bias.tensor not in self.tensors:
            return torch.zeros(moments.e.numel(), dtype=weight.dtype, device=weight.device)
        return self.tensors[bias.tensor].detach()

    def _set(self, name: str, value: Tensor) -> None:
        tensor = self.tensors[name]
        self._before.setdefault(name, tensor.detach().clone())
        tensor.detach().copy_(value)


class Nothing:
    """Moments that no row is counted into."""

    def add(self, x: Tensor, e: Tensor) -> None:
        pass


def _worse(before: float | None, after: float | None) -> bool:
    """Whether an error has not become less; never where nothing tells."""
    return before is not None and after is not None and not after < before
