"""Random networks, grown piece by piece: each piece reads values of the net and adds new ones.

A piece is told what to do by choices only, so that hypothesis can drive it and shrink what fails.
Axis 0 of every value is the batch; no other axis is special.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Choose = Callable[[int], int]  # n -> one of 0 .. n - 1
Run = Callable[..., Any]  # (step, *values) -> a value, or several
Piece = Callable[["Growth"], None]
PIECES: list[Piece] = []

BATCH = 3
LARGEST = 400  # entries of a value, batch left out
WIDTHS = (6, 8, 4, 12, 5, 3, 9, 10, 2, 1)


def piece(function: Piece) -> Piece:
    """Add a piece to the table."""
    PIECES.append(function)
    return function


class Step(nn.Module):
    """One piece of a net: its modules and parameters, and what it does with the values it reads."""

    def __init__(self, run: Run, reads: Sequence[int], parts: dict[str, Any]) -> None:
        super().__init__()
        self.run, self.reads = run, list(reads)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *values: Tensor) -> Any:
        return self.run(self, *values)


class Net(nn.Module):
    """All steps in order. The outputs: the heads' sum, and the values in `more`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.more: list[int] = []

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step in self.steps:
            made = step(*(values[i] for i in step.reads))
            values += made if isinstance(made, (tuple, list)) else [made]
        total: Any = 0
        for head in self.heads:
            total = total + head(*(values[i] for i in head.reads))
        return {"heads": total, "more": [values[i] for i in self.more]} if self.more else total


class Dead(Exception):
    """This piece does not fit the values there are."""


class Growth:
    """A net as it grows: its values so far, by example, and the choices that remain to be made."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.net = Net()
        self.values: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.read: set[int] = set()
        self.text: list[str] = []

    def only(self, piece: Piece) -> None:
        """Add one piece. Raises Dead when it does not fit the values there are."""
        try:
            piece(self)
        except (IndexError, RuntimeError, ValueError) as error:
            raise Dead from error

    def one(self, options: Sequence[T]) -> T:
        """One of the options; the first is the simplest."""
        if not options:
            raise Dead
        return options[self._choose(len(options))]

    def flip(self) -> bool:
        return self._choose(2) == 1

    def input(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(sum(shape))
        self.inputs.append(torch.randn(BATCH, *shape, generator=generator))
        self.values.append(self.inputs[-1])
        self.text.append(f"v{len(self.values) - 1} = input{list(shape)}")

    def pick(self, *ranks: int, fits: Callable[[Tensor], bool] = lambda _: True) -> int:
        """A value of one of these ranks (any by default), the latest first; never an input."""
        usable = [
            i
            for i in reversed(range(len(self.inputs), len(self.values)))
            if (not ranks or self.values[i].dim() in ranks) and fits(self.values[i])
        ]
        return self.one(usable[:5])

    def axis(self, i: int, fits: Callable[[int], bool] = lambda _: True) -> int:
        """One of the value's axes but the batch, the last first."""
        shape = self.values[i].shape
        return self.one([a for a in reversed(range(1, len(shape))) if fits(shape[a])])

    def add(self, text: str, reads: Sequence[int], run: Run, **parts: Any) -> list[int]:
        """Do it: the indices of the new values."""
        step = Step(run, reads, parts).eval()
        made = step(*(self.values[i].clone() for i in reads))
        made = list(made) if isinstance(made, (tuple, list)) else [made]
        if any(v[0].numel() > LARGEST or v.dim() > 6 or not v.numel() for v in made):
            raise Dead
        self.read.update(reads)
        self.net.steps.append(step)
        first = len(self.values)
        self.values += [v.detach() for v in made]
        names = ", ".join(f"v{first + k}{list(v.shape[1:])}" for k, v in enumerate(made))
        self.text.append(f"{names} = {text} of {', '.join(f'v{i}' for i in reads)}")
        return list(range(first, len(self.values)))


def like(g: Growth, i: int, differing: int | None = None) -> int:
    """Another value of the same shape (but along one axis), or a layer's result that is."""
    shape = list(g.values[i].shape)

    def fits(v: Tensor) -> bool:
        other = list(v.shape)
        if differing is not None and len(other) == len(shape):
            other[differing] = shape[differing]
        return other == shape

    others = [k for k in range(len(g.inputs), len(g.values)) if k != i and fits(g.values[k])]
    kind = g.one([*others[-3:], -1, -2])
    if kind >= 0:
        return kind
    if kind == -1:
        width = shape[-1]
        return g.add("linear", [i], lambda s, x: s.a(x), a=nn.Linear(width, width))[0]
    return g.add("relu", [i], lambda s, x: x.relu())[0]


def divisors(n: int) -> list[int]:
    return [d for d in range(2, n) if n % d == 0]


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * (shape[-1] if len(shape) > 1 else 1) ** -0.5)


def grow(choose: Choose, pieces: int = 6) -> tuple[Net, tuple[Tensor, ...], list[str]]:
    """A net of up to so many pieces after its stem, its example inputs, and what it is made of."""
    growth = Growth(choose)
    stem(growth)
    for _ in range(pieces):
        with contextlib.suppress(Dead):
            growth.only(growth.one(PIECES))
    _heads(growth)
    return growth.net.eval(), tuple(growth.inputs), growth.text


def stem(g: Growth) -> None:
    """The input and the first layer."""
    kind = g.one(["tokens", "image", "vector"])
    width = g.one(WIDTHS[:8])
    if kind == "tokens":
        g.input(g.one([5, 4, 6]), 7)
        g.add("linear", [0], lambda s, x: s.stem(x), stem=nn.Linear(7, width))
    elif kind == "image":
        g.input(3, 4, 4)
        g.add("conv", [0], lambda s, x: s.stem(x), stem=nn.Conv2d(3, width, 3, padding=1))
    else:
        g.input(7)
        g.add("linear", [0], lambda s, x: s.stem(x), stem=nn.Linear(7, width))


def _heads(g: Growth) -> None:
    """Every value that nothing reads goes to an output."""
    ends = [i for i in range(len(g.inputs), len(g.values)) if i not in g.read]
    for i in ends[:4]:
        x = g.values[i]
        kind = g.one(["flat", "last", "mean", "sum", "raw"])
        if kind == "raw" and i != ends[0]:
            g.net.more.append(i)
        elif kind in ("mean", "sum") and x.dim() > 2:
            axes = tuple(range(1, x.dim() - 1)) if g.flip() else tuple(range(2, x.dim()))
            width = x.shape[-1] if axes[0] == 1 else x.shape[1]
            reduce = torch.mean if kind == "mean" else torch.sum
            g.net.heads.append(
                Step(
                    lambda s, v, r=reduce, a=axes: s.head(r(v, a)),
                    [i],
                    {"head": nn.Linear(width, 3)},
                )
            )
        elif kind == "last" and x.dim() > 2:
            head = nn.Linear(x.shape[-1], 3)
            g.net.heads.append(
                Step(lambda s, v: s.head(v).relu().flatten(1, -2).sum(1), [i], {"head": head})
            )
        else:
            head = nn.Linear(x[0].numel(), 3)
            g.net.heads.append(Step(lambda s, v: s.head(v.flatten(1)), [i], {"head": head}))
        g.text.append(f"head {kind} of v{i}")
