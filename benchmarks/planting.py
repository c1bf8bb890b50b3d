"""Widening a trained net without changing its function: entries that are known to be redundant.

Entries (channels, hidden units, heads, widths of a head) are added to a place where some layers
make them and others read them. A plant hides: its values are scaled or mixed, what reads the old
entries is changed too, and the new ones end up anywhere among the old.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ROW_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclasses.dataclass
class Place:
    """`size` entries that `makers` (the last one in front of the activation) give and `reader`
    reads. Along a maker's rows an entry is [outer, size, inner]: inner rows side by side, as a head
    has, or the same row of each of `outer` heads; likewise along the reader's columns, whose inner
    part is what remains. `positive`: the activation between scales with positive factors (ReLU,
    none). `linear`: there is none. `zero_at`: the input below which the activation is 0.
    """

    name: str
    makers: Sequence[nn.Module]
    reader: nn.Module
    size: int
    outer: int = 1
    positive: bool = True
    linear: bool = False
    zero_at: float | None = 0.0

    def rows(self, maker: nn.Module, name: str) -> Tensor | None:
        """A maker's tensor as [outer, size, inner, ...]; None where it has none."""
        tensor = getattr(maker, name, None)
        if tensor is None:
            return None
        return tensor.detach().reshape(self.outer, self.size, -1, *tensor.shape[1:])

    def columns(self) -> Tensor:
        """The reader's weight as [outer, size, inner, rows, ...]."""
        weight = self.reader.weight.detach().transpose(0, 1)  # type: ignore[union-attr]
        return weight.reshape(self.outer, self.size, -1, *weight.shape[1:])

    def grow(self, made: Sequence[dict[str, Tensor]], read: Tensor) -> None:
        """Put in new rows for every maker, and all columns of the reader; sizes follow."""
        self.size = read.shape[1]
        for maker, tensors in zip(self.makers, made, strict=True):
            for name, rows in tensors.items():
                _set(maker, name, rows.flatten(0, 2))
        _set(self.reader, "weight", read.flatten(0, 2).transpose(0, 1))

    def current(self) -> list[dict[str, Tensor]]:
        """Every maker's tensors, as `grow` takes them."""
        found = [{n: self.rows(m, n) for n in ROW_TENSORS} for m in self.makers]
        return [{n: t for n, t in tensors.items() if t is not None} for tensors in found]


def duplicates(place: Place, count: int, generator: torch.Generator) -> int:
    """Scaled copies of entries; the reader's weights are divided between the two unevenly."""
    for _ in range(count):
        source = _draw(place, generator)
        scale = _between(0.3, 3.0, generator) if place.positive else 1.0
        share = _between(0.2, 0.8, generator)
        made = _appended(place, lambda t, s=source: t[:, s : s + 1])
        _scale_last(place, made, scale)
        read = place.columns()
        copy = read[:, source : source + 1] * (share / scale)
        read = torch.cat([read, copy], dim=1)
        read[:, source] *= 1 - share
        place.grow(made, read)
    return count


def cancelling(place: Place, count: int, generator: torch.Generator) -> int:
    """Pairs of new, alike entries that the reader takes with opposite signs; `count` is even."""
    for _ in range(count // 2):
        scale = _between(0.3, 3.0, generator) if place.positive else 1.0
        place.grow(_invented(place, generator), _read(place, generator))
        last = place.size - 1
        made = _appended(place, lambda t, s=last: t[:, s : s + 1])
        _scale_last(place, made, scale)
        read = place.columns()
        place.grow(made, torch.cat([read, read[:, last:] / -scale], dim=1))
    return count // 2 * 2


def mixtures(place: Place, count: int, generator: torch.Generator) -> int:
    """Linear combinations of all other entries, where nothing stands between maker and reader."""
    assert place.linear
    old = place.size
    mix = torch.randn(place.outer, count, old, generator=generator) / old**0.5
    made = place.current()
    for tensors in made:
        for name, rows in tensors.items():
            new = torch.einsum("onk,ok...->on...", mix, rows)
            tensors[name] = torch.cat([rows, new], dim=1)
    read = place.columns()
    new = torch.randn(read[:, :count].shape, generator=generator) * read.std()
    taken = torch.einsum("onk,on...->ok...", mix, new)
    place.grow(made, torch.cat([read - taken, new], dim=1))
    return count


def unread(place: Place, count: int, generator: torch.Generator) -> int:
    """New entries whose weights in the reader are zero."""
    for _ in range(count):
        read = _read(place, generator)
        read[:, -1] = 0
        place.grow(_invented(place, generator), read)
    return count


def silent(place: Place, count: int, generator: torch.Generator) -> int:
    """New entries that are always zero: so are the weights that make them."""
    for _ in range(count):
        made = _invented(place, generator)
        for name in ("weight", "bias"):
            if name in made[-1]:
                made[-1][name][:, -1] = 0
        place.grow(made, _read(place, generator))
    return count


def inactive(
    place: Place, count: int, generator: torch.Generator, run: Callable[[], object]
) -> int:
    """New entries that the activation never lets through on the data that `run` shows the model."""
    assert place.zero_at is not None
    for _ in range(count):
        place.grow(_invented(place, generator), _read(place, generator))
    seen: list[Tensor] = []
    last = place.makers[-1]
    axis = -1 if isinstance(last, nn.Linear) else 1
    hook = last.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    run()
    hook.remove()
    rows = torch.cat([s.movedim(axis, 0).flatten(1) for s in seen], dim=1)[-count:]
    # Well below the threshold, so that other data does not reach it either.
    peak, spread = rows.amax(1), rows.amax(1) - rows.amin(1)
    bias: Tensor = last.bias.detach().clone()  # type: ignore[union-attr,operator]
    bias[-count:] += place.zero_at - peak - spread
    _set(last, "bias", bias)
    return count


def shuffled(place: Place, generator: torch.Generator) -> None:
    """Put the entries in a random order."""
    order = torch.randperm(place.size, generator=generator)
    made = [{n: rows[:, order] for n, rows in tensors.items()} for tensors in place.current()]
    place.grow(made, place.columns()[:, order])


def _appended(place: Place, new: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
    """Every maker's tensors with one more entry, made from the tensor."""
    made = place.current()
    return [{n: torch.cat([t, new(t)], dim=1) for n, t in tensors.items()} for tensors in made]


def _invented(place: Place, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Every maker's tensors with one more entry, between two of the old: a new function of the
    input, of the usual size (what is far larger would leave rounding errors behind)."""
    one, other = _draw(place, generator), _draw(place, generator)
    share = _between(0.2, 0.8, generator)
    return _appended(place, lambda t: share * t[:, [one]] + (1 - share) * t[:, [other]])


def _read(place: Place, generator: torch.Generator) -> Tensor:
    """The reader's columns with random ones for one more entry."""
    read = place.columns()
    new = torch.randn(read[:, :1].shape, generator=generator) * read.std()
    return torch.cat([read, new], dim=1)


def _scale_last(place: Place, made: Sequence[dict[str, Tensor]], scale: float) -> None:
    """Scale what comes out of the last maker."""
    for name in ("weight", "bias"):
        if scale != 1 and name in made[-1]:
            made[-1][name][:, -1] *= scale


def _draw(place: Place, generator: torch.Generator) -> int:
    return int(torch.randint(place.size, (), generator=generator))


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    value = value.detach().contiguous().clone()
    if name in module._buffers:
        module._buffers[name] = value
    else:
        module._parameters[name] = nn.Parameter(value)
    sizes = {"weight": ("out_channels", "out_features", "num_features")}.get(name, ())
    for size in sizes:
        if hasattr(module, size):
            setattr(module, size, value.shape[0])
    if name == "weight" and value.dim() > 1:
        setattr(module, "in_features" if value.dim() == 2 else "in_channels", value.shape[1])
