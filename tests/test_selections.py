"""Selections in whole compiles: what is counted, stored and carried out again."""

from __future__ import annotations

import pathlib

import nets_of_selection
import pytest
import torch
from nets import IMAGE, lively
from tiny_models import parameters
from torch import nn

from prunec import compiler
from prunec.compiler import Result


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nets_of_selection.shufflenet_of_odd_halves().eval()
    lively(made)
    return made


@pytest.fixture(scope="module")
def result() -> Result:
    return compiler.compile(net(), (IMAGE,), target=compiler.Target(width=0.6), measure=False)


def test_which_of_the_shuffled_channels_go_decides_what_is_left(result: Result) -> None:
    assert result.report.after.params == parameters(result.model) < result.report.before.params


def test_shuffles_that_are_selections_leave_the_class(result: Result) -> None:
    assert result.plan.backend == "graph"
    assert all("prunec" not in name for name in result.plan.slices())


def test_a_selection_is_stored_and_applied_again(result: Result, tmp_path: pathlib.Path) -> None:
    expected = result.model(IMAGE)
    result.save(tmp_path / "artifact")
    assert torch.equal(compiler.load(tmp_path / "artifact")(IMAGE), expected)
    assert torch.equal(result.plan.apply(net(), (IMAGE,))(IMAGE), expected)
