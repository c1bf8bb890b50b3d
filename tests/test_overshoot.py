"""A speed asked for is met by the widest widths that reach it, also where time falls in steps."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import nn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.compilation import Compilation
from prunec.compiler.cost_model.counted import counted
from prunec.compiler.measure.cost import cost
from prunec.passes.allocation import closed_loop


class _Times:
    """Op times that are in proportion to multiplications, measured at once."""

    def __init__(self, graph: Any, lowest: Any, **_: Any) -> None:
        self.graph, self.variables = graph, list(lowest)
        self.table = types.SimpleNamespace(notes=[])

    def model(self, each: float = 0.0) -> Any:
        return counted(self.graph, "macs", self.variables)

    def elements(self) -> int:
        return 0

    def refine(self, sizes: Any) -> bool:
        return False


class _Clock:
    """Candidates whose time is a curve of their multiplications, `curve(share)`."""

    def __init__(self, graph: Any, curve: Any) -> None:
        self.graph, self.curve = graph, curve
        self.unsteady: list[float] = []
        self.known: dict[Any, Any] = {}

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def time(self, allocation: Any) -> Any:
        sizes = {self.graph.dimensions[n].var: w for n, w in allocation.widths.items()}
        share = cost(self.graph, sizes).macs / cost(self.graph).macs
        self.known[allocation.key] = share
        before = types.SimpleNamespace(median_ms=1.0)
        return types.SimpleNamespace(before=before, ratio=1 / self.curve(share), control=1.0)


def reached(monkeypatch: pytest.MonkeyPatch, curve: Any, speedup: float) -> tuple[float, int]:
    """The measured speed, and how many candidates were measured."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Conv2d(48, 24, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 5),
    ).eval()  # fmt: skip
    graph = compiler.capture(model, (torch.randn(2, 3, 12, 12),))
    clock = _Clock(graph, curve)
    monkeypatch.setattr(closed_loop, "OpTimes", _Times)
    monkeypatch.setattr(closed_loop, "Candidates", lambda *_: clock)
    state = Compilation(graph)
    for step in (passes.MagnitudeScore(), passes.AllocateWidths(Target(speedup=speedup))):
        step.run(state)
    assert state.aim is not None
    assert state.aim.measured is not None
    return state.aim.measured, len(clock.known)


CURVES = {
    "overhead": lambda share: 0.15 + 0.85 * share,
    "early": lambda share: 0.12 + 0.88 * share**3,
    "late": lambda share: 0.12 + 0.88 * share**0.3,
    "steps": lambda share: 0.12 + 0.88 * round(12 * share**2) / 12,
}


@pytest.mark.parametrize("speedup", [1.3, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("curve", CURVES)
def test_speed_asked_for_is_not_overshot(
    monkeypatch: pytest.MonkeyPatch, curve: str, speedup: float
) -> None:
    measured, tries = reached(monkeypatch, CURVES[curve], speedup)
    assert measured >= speedup / (1 + closed_loop.SLACK)
    shares = [CURVES[curve](i / 2000) for i in range(2001)]  # what the clock can show at all
    best = min(1 / t for t in shares if 1 / t >= speedup / (1 + closed_loop.SLACK))
    assert measured <= max(best, speedup) * 1.08
    assert tries <= closed_loop.ROUNDS + closed_loop.WIDENED + 2
