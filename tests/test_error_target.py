"""A target of error: the fewest entries of every dimension that keep its predicted error."""

from __future__ import annotations

import pytest
import torch
from tiny_models import IMAGES, small_cnn

from prunec import compiler, passes
from prunec.compiler import Target
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import TargetError


def falling(size: int, zero_from: int) -> torch.Tensor:
    """A curve that is 0 from a width on and 1e-4 for each entry fewer (relative error 1e-2)."""
    return (zero_from - torch.arange(size + 1)).clamp(min=0).double() * 1e-4


@pytest.fixture
def state() -> Compilation:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    found = Compilation(graph)
    passes.MagnitudeScore().run(found)
    return found


def allocate(state: Compilation, error: float, **options: int) -> dict[str, int]:
    passes.AllocateWidths(Target(error=error), **options).run(state)
    assert state.widths is not None
    return state.widths


def test_the_fewest_entries_within_the_error_stay(state: Compilation) -> None:
    first, second = state.graph.prunable
    state.errors = {first: falling(16, 10), second: falling(24, 20)}
    assert allocate(state, 1e-5) == {first: 10, second: 20}
    assert allocate(state, 0.0201) == {first: 6, second: 16}
    assert allocate(state, 1e-5, round_to=4) == {first: 12, second: 20}
    assert allocate(state, 1.0) == {first: 1, second: 1}


def test_a_dimension_without_a_curve_keeps_its_size(state: Compilation) -> None:
    first, _ = state.graph.prunable
    state.errors = {first: falling(16, 10)}
    assert allocate(state, 1e-5) == {first: 10}


def test_error_without_curves_names_the_pass_that_measures_them(state: Compilation) -> None:
    with pytest.raises(TargetError, match="SecondOrderScore"):
        allocate(state, 1e-5)
    first, _ = state.graph.prunable
    state.errors = {first: torch.zeros(3)}
    with pytest.raises(TargetError, match=r"has shape \(3,\), not \(17,\)"):
        allocate(state, 1e-5)


def test_curves_that_allow_nothing_leave_every_width(state: Compilation) -> None:
    first, _ = state.graph.prunable
    state.errors = {first: falling(16, 16)}
    widths = allocate(state, 1e-5)
    assert widths
    assert all(widths[name] == state.graph.dimensions[name].size for name in widths)


def test_error_is_a_target_like_any_other() -> None:
    assert Target.parse("error=1e-5") == Target(error=1e-5)
    with pytest.raises(TargetError, match="positive"):
        Target(error=0.0)
