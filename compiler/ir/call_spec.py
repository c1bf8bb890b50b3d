"""What a graph was captured for: the constants of its call, the dtypes and sizes of its tensors.

A captured graph holds the branches that its example took. Outside the sizes for which torch knows
them to be the same, and with other constants, it would give another model's answer: calls are
checked against this description, which travels with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import CallError
from .call_inputs import (
    INPUTS,
    Input,
    NumberInput,
    Size,
    TensorInput,
    dtype_name,
    input_data,
    interchangeable,
    read_input,
    read_list,
    read_text,
    require_keys,
    same,
    shown,
    sizes_of,
    valid,
)
from .size_terms import Condition, condition_from_json, is_whole, names_in


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of a symbol, both ends included; None: no end. `branch`: a line of the model set
    it, so that the graph may run beyond it and be wrong; else an op of the graph fails there."""

    low: int | None = None
    high: int | None = None
    branch: bool = True


@dataclasses.dataclass(frozen=True)
class CallSpec:
    """The flat inputs in order, the range of each symbol, what else must hold of the symbols.

    `notes`: what is known and not guarded, for the report.
    """

    inputs: tuple[Input, ...]
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self, flat_inputs: Sequence[Any]) -> None:
        """Raise CallError where a call is none that the graph was captured for.

        Sizes that are no ints (symbolic ones, while something is traced) are passed over.
        """
        if len(flat_inputs) != len(self.inputs):
            raise CallError(
                f"the call holds {len(flat_inputs)} values where {len(self.inputs)} were captured:"
                " pass arguments nested as the example's."
            )
        sizes: dict[str, int] = {}
        for spec, value in zip(self.inputs, flat_inputs, strict=True):
            if isinstance(spec, TensorInput):
                self._check_tensor(spec, value, sizes)
            elif isinstance(spec, NumberInput):
                if type(value) is int:
                    self._bind(spec.size, value, spec.name, None, sizes)
            elif not same(spec, value):
                raise CallError(
                    f"'{spec.name}' is {shown(value)}, and the model was captured with"
                    f" {shown(spec.value, spec.kind)}, which is part of the graph: call it so, or"
                    " capture it with the other value."
                )
        for condition in self.conditions:
            if names_in(condition.left) | names_in(condition.right) <= sizes.keys():
                self._require(condition, sizes)

    def admits(self, flat_inputs: Sequence[Any]) -> bool:
        """Whether `check` passes."""
        try:
            self.check(flat_inputs)
        except CallError:
            return False
        return True

    def _check_tensor(self, spec: TensorInput, value: Any, sizes: dict[str, int]) -> None:
        if not isinstance(value, Tensor):
            raise CallError(
                f"'{spec.name}' is {shown(value)}, and the model was captured with a tensor:"
                " pass one, or capture the model without it."
            )
        if value.dtype != spec.dtype and not interchangeable(value.dtype, spec.dtype):
            wanted = dtype_name(spec.dtype)
            raise CallError(
                f"'{spec.name}' is {dtype_name(value.dtype)}, and the model was captured with"
                f" {wanted}: convert it with .to(torch.{wanted}), or capture the model with such an"
                " input."
            )
        if value.dim() != len(spec.axes):
            raise CallError(
                f"'{spec.name}' has {value.dim()} axes, and the model was captured with"
                f" {len(spec.axes)}: give it that shape, or capture the model with such an input."
            )
        for axis, (size, given) in enumerate(zip(spec.axes, value.shape, strict=True)):
            if type(given) is int:
                self._bind(size, given, spec.name, axis, sizes)

    def _bind(
        self, size: Size, given: int, name: str, axis: int | None, sizes: dict[str, int]
    ) -> None:
        """Compare a size with what was captured; what is first learnt of a symbol is kept."""
        if size.free:
            return
        if not size.symbol:
            if given != size.offset:
                raise CallError(_outside(name, axis, given, str(size.offset)))
            return
        value, rest = divmod(given - size.offset, size.factor)
        known = sizes.get(size.symbol)
        if rest or (known is None and not self._within(size.symbol, value)):
            raise CallError(_outside(name, axis, given, self._allowed(size)))
        if known is None:
            sizes[size.symbol] = value
        elif known != value:
            wanted = size.factor * known + size.offset
            raise CallError(
                f"{_place(name, axis)} is {given}, and goes with {self._where(size.symbol)}, which"
                f" makes it {wanted}: give both the sizes of one call."
            )

    def _within(self, symbol: str, value: int) -> bool:
        span = self.ranges.get(symbol)
        return span is None or (
            (span.low is None or value >= span.low) and (span.high is None or value <= span.high)
        )

    def _require(self, condition: Condition, sizes: Mapping[str, int]) -> None:
        if not condition.holds(sizes):
            names = names_in(condition.left) | names_in(condition.right)
            places = {name: self._where(name) for name in names}
            given = " and ".join(f"{places[n]} = {sizes[n]}" for n in sorted(names))
            raise CallError(
                f"the model was captured for {condition.text(places)}, and the call has {given}: a"
                " branch of the model may depend on it; capture it with such an example."
            )

    def _axis_range(self, size: Size) -> Range:
        """The values of an axis."""
        span = self.ranges.get(size.symbol, Range())
        low, high = (
            None if x is None else size.factor * x + size.offset for x in (span.low, span.high)
        )
        return Range(low, high)

    def _allowed(self, size: Size) -> str:
        text = _span(self._axis_range(size))
        if size.factor != 1:
            left = size.offset % size.factor
            step = f"multiples of {size.factor}" + (f" plus {left}" if left else "")
            text = f"{step}, {text}" if text else step
        return text or f"{size.offset} or more"

    def _where(self, symbol: str) -> str:
        """The first place of a symbol, as people know it."""
        for name, axis, size in self._places():
            if size.symbol == symbol:
                place = _place(name, axis)
                if size.factor == 1 and size.offset == 0:
                    return place
                return f"({place} - {size.offset}) / {size.factor}"
        return symbol

    def _places(self) -> Iterator[tuple[str, int | None, Size]]:
        for spec in self.inputs:
            if isinstance(spec, NumberInput):
                yield spec.name, None, spec.size
            elif isinstance(spec, TensorInput):
                for axis, size in enumerate(spec.axes):
                    yield spec.name, axis, size

    @property
    def bounded(self) -> bool:
        """Whether some size that may vary does so within bounds only."""
        return bool(self.conditions) or any(
            s.symbol and self._axis_range(s) != Range() for _, _, s in self._places()
        )

    def branches(self) -> set[tuple[int, int]]:
        """The (input, axis) pairs beyond whose bounds the graph may be wrong without an error."""
        named = {n for c in self.conditions for n in names_in(c.left) | names_in(c.right)}
        named |= {name for name, span in self.ranges.items() if span.branch}
        return {
            (place, axis)
            for place, spec in enumerate(self.inputs)
            if isinstance(spec, TensorInput)
            for axis, size in enumerate(spec.axes)
            if size.symbol in named
        }

    def describe(self) -> list[str]:
        """The bounds of what may vary, one a line; none where any size will do."""
        lines, seen = [], set[str]()
        for name, axis, size in self._places():
            if not size.symbol or size.symbol in seen:
                continue
            seen.add(size.symbol)
            span = self._axis_range(size)
            if span != Range() or size.factor != 1:
                lines.append(f"{_place(name, axis)}: {self._allowed(size)}")
        for condition in self.conditions:
            names = names_in(condition.left) | names_in(condition.right)
            lines.append(condition.text({name: self._where(name) for name in names}))
        return [*lines, *self.notes]

    def axes(self) -> list[dict[str, Any]]:
        """What may vary, as JSON types: input, axis (None: the input is the size), the least and
        the largest size (None: no bound), and the step between sizes."""
        return [
            {
                "input": name,
                "axis": axis,
                "low": self._axis_range(size).low,
                "high": self._axis_range(size).high,
                "step": size.factor,
            }
            for name, axis, size in self._places()
            if size.symbol
        ]

    def to_json(self) -> dict[str, Any]:
        """As JSON types, which `from_json` reads."""
        return {
            "inputs": [input_data(spec) for spec in self.inputs],
            "ranges": {
                name: [span.low, span.high, span.branch] for name, span in self.ranges.items()
            },
            "conditions": [condition.to_json() for condition in self.conditions],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Any) -> CallSpec:
        """Raises ArtifactError unless `data` is such a description and nothing else."""
        require_keys(data, "inputs", "ranges", "conditions", "notes")
        inputs = tuple(read_input(item) for item in read_list(data["inputs"], INPUTS))
        sizes = [s for x in inputs for s in sizes_of(x)]
        symbols = {size.symbol for size in sizes} - {""}
        valid(isinstance(data["ranges"], dict) and len(data["ranges"]) <= len(symbols))
        ranges = {}
        for name, ends in data["ranges"].items():
            valid(name in symbols and isinstance(ends, list) and len(ends) == 3)
            valid(all(end is None or is_whole(end) for end in ends[:2]))
            valid(isinstance(ends[2], bool))
            ranges[name] = Range(*ends)
        conditions = read_list(data["conditions"], INPUTS)
        notes = read_list(data["notes"], INPUTS)
        return cls(
            inputs,
            ranges,
            tuple(condition_from_json(item, symbols) for item in conditions),
            tuple(read_text(note) for note in notes),
        )


def _outside(name: str, axis: int | None, given: int, allowed: str) -> str:
    return (
        f"{_place(name, axis)} is {given}, and the model was captured for {allowed} there: keep to"
        " that, or capture it with an example of that size, since branches and constants of the"
        " model may depend on it."
    )


def _place(name: str, axis: int | None) -> str:
    return f"'{name}'" if axis is None else f"axis {axis} of '{name}'"


def _span(span: Range) -> str:
    if span.low is not None and span.high is not None:
        return f"{span.low} to {span.high}" if span.low < span.high else str(span.high)
    if span.high is not None:
        return f"at most {span.high}"
    return f"at least {span.low}" if span.low is not None else ""
