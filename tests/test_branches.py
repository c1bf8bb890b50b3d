"""Which branches and blocks are found in a graph, and that each may go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import module
from nets_of_depth import (
    PICTURES,
    ROWS,
    TRANSFORMERS,
    Inline,
    Mlp,
    Nested,
    Residual,
    SharedTable,
    Stack,
    made,
)
from torch import Tensor, nn

from prunec.compiler import Graph, capture
from prunec.compiler.inference.branches import Branch, find_branches
from prunec.compiler.rewrite.depth import without_branches
from prunec.compiler.rewrite.zero_branches import drop_of
from prunec.compiler.verify.dropped import dropped
from prunec.compiler.verify.structure import check_structure


def found(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Graph, dict[str, Branch]]:
    graph = capture(model, args, kwargs=kwargs)
    return graph, {b.name: b for b in find_branches(graph)}


def named(branches: dict[str, Branch], unit: str) -> list[str]:
    return [name for name, b in branches.items() if unit in b.units]


def check_each(graph: Graph, branches: dict[str, Branch]) -> None:
    """Each alone: the smaller graph is the original with the value replaced."""
    inputs = [graph.program.flat_inputs()]
    for branch in branches.values():
        smaller = without_branches(graph, [drop_of(graph, branch)])
        check = dropped(smaller, inputs)
        assert check.passed, branch.name
        check_structure(smaller, smaller.program, {})
        left = set(smaller.program.tensors)
        assert left == set(graph.program.tensors) - set(branch.tensors)


@pytest.mark.parametrize("norm_first", [True, False])
def test_layers_of_two_branches(norm_first: bool) -> None:
    graph, branches = found(made(Stack, norm_first), ROWS)
    assert named(branches, "block") == ["layers.0", "layers.1", "layers.2"]
    assert len(named(branches, "branch")) == 6
    norms = {"layers.1.one.weight", "layers.1.two.weight"}
    assert norms <= set(branches["layers.1"].tensors)
    mlp = branches["layers.1.mlp"]
    assert ("layers.1.two.weight" in mlp.tensors) is norm_first
    assert {"layers.1.mlp.up.weight", "layers.1.mlp.down.bias"} <= set(mlp.tensors)
    check_each(graph, branches)


def test_blocks_without_modules_are_what_repeats() -> None:
    graph, branches = found(made(Inline), ROWS)
    assert len(named(branches, "block")) == 3
    assert len(named(branches, "branch")) == 6
    blocks = [branches[name] for name in named(branches, "block")]
    assert [b.source for b in blocks[1:]] == [b.result for b in blocks[:-1]]
    assert [len(b.tensors) for b in blocks] == [2, 2, 2]
    check_each(graph, branches)


@pytest.mark.parametrize("in_place", [False, True])
def test_convolutions_and_a_projection_that_is_no_branch(in_place: bool) -> None:
    graph, branches = found(made(Residual, in_place), PICTURES)
    assert named(branches, "block") == ["body.0", "body.1", "body.3"]
    assert len(named(branches, "branch")) == 4
    projected = branches["body.2"]
    assert "body.2.two.weight" in projected.tensors
    assert not any("short" in name for b in branches.values() for name in b.tensors)
    check_each(graph, branches)


def test_nested_branches_and_sums_of_several() -> None:
    graph, branches = found(made(Nested), ROWS)
    holding = {name: set(b.tensors) for name, b in branches.items()}
    inner = next(t for t in holding.values() if all(n.startswith("inner") for n in t))
    assert any(
        inner < t and "outer.up.weight" in t and "gate.weight" in t for t in holding.values()
    )
    left, right = branches["left"], branches["right"]
    assert left.result == right.result
    both = next(t for t in holding.values() if {"left.up.weight", "right.up.weight"} <= t)
    assert both == set(left.tensors) | set(right.tensors)
    check_each(graph, branches)


def test_a_table_that_others_read_stays() -> None:
    graph, branches = found(made(SharedTable), ROWS)
    first = branches["layers.0"]
    assert first.tensors == ("layers.0.bias", "layers.0.weight")
    check_each(graph, branches)
    smaller = without_branches(graph, [drop_of(graph, first)])
    assert "position.weight" in smaller.program.tensors


def no_branches() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Sums that are no residual ones."""

    def gelu(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))))

    def positions(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + self.table)

    def equal(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mlp(x) + self.other(x))

    def scaled(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.add(x, self.mlp(x), alpha=2))

    def wider(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.one(torch.relu(x)))

    parts = {"stem": nn.Linear(8, 8), "head": nn.Linear(8, 5)}
    return {
        "gelu": (gelu, parts),
        "positions": (positions, parts | {"table": nn.Parameter(torch.randn(6, 8))}),
        "two of equal depth": (equal, parts | {"mlp": Mlp(), "other": Mlp()}),
        "a factor": (scaled, parts | {"mlp": Mlp()}),
        "broadcast": (wider, parts | {"one": nn.Linear(8, 1)}),
    }


@pytest.mark.parametrize("name", no_branches())
def test_sums_that_are_no_residual_ones(name: str) -> None:
    forward, parts = no_branches()[name]
    assert find_branches(capture(module(forward, **parts).eval(), (ROWS,))) == []


def test_what_is_read_outside_is_no_block() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Mlp() for _ in range(3))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            seen = []
            for layer in self.layers:
                y = layer(x)
                seen.append(y)
                x = x + y
            return self.head(x), seen[1]

    _, branches = found(made(Kept), ROWS)
    assert named(branches, "branch") == ["layers.0", "layers.2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    build, args, kwargs = TRANSFORMERS[name]
    graph, branches = found(build(), *args, **kwargs)
    blocks, sums = named(branches, "block"), named(branches, "branch")
    assert [name.rpartition(".")[2] for name in blocks] == ["0", "1", "2"]
    assert len(sums) == 6
    check_each(graph, branches)
