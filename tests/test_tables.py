"""Tables that several modules read: tied by default, one selection per module when asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import TOKENS, conv, floats, found, lively
from test_structures import cuts, masked_outputs, only_exact
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Graph, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.difference import relative_error
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.compiler.verify.oracles import permutation, restricted_statistics, zero_mask
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure


class Rotated(nn.Module):
    """One head of width 6 with rotary positions, read from a table made elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 5)
        self.out = nn.Linear(5, 8)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat((-b, a), -1) * sin

        scores = rotate(self.q(x)) @ rotate(self.k(x)).transpose(-2, -1)
        return x + self.out(scores.softmax(-1) @ self.v(x))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", torch.tensor([1.0, 0.3, 0.1]))
        self.first, self.second = Rotated(), Rotated()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.rates
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos(), angles.sin()
        return self.head(self.second(self.first(x, cos, sin), cos, sin))


def rotary() -> nn.Module:
    torch.manual_seed(0)
    net = Rotary().eval()
    lively(net)
    return net


@pytest.fixture(scope="module")
def untied() -> Graph:
    return capture(rotary(), (TOKENS,), untie_tables=True)


def pairs(graph: Graph) -> list[str]:
    return [d.name for d in graph.prunable.values() if d.size == 3]


def test_layers_that_read_one_table_are_tied_by_default() -> None:
    assert len(pairs(capture(rotary(), (TOKENS,)))) == 1


def test_each_module_selects_its_own_entries(untied: Graph) -> None:
    assert found(untied) == ("head-dim 3", "head-dim 3", "head-dim 5", "head-dim 5")
    first, second = pairs(untied)
    plan = Plan(kept={first: [2], second: [0, 1]}, graph=untied)
    slices = plan.slices()
    assert "rates" not in slices
    assert slices["first.q.weight"][0].tolist() == [2, 5]
    assert slices["second.k.weight"][0].tolist() == [0, 1, 3, 4]
    dense = rewrite(untied, plan.planned())
    chosen = [t.tolist() for n, t in dense.tensors.items() if n.startswith("prunec_indices")]
    assert sorted(chosen) == sorted([[2, 5], [2, 5], [0, 1, 3, 4], [0, 1, 3, 4]])


def test_untied_cuts_are_exact(untied: Graph) -> None:
    inputs = verification_inputs(Compilation(untied))
    check = permutation(untied, inputs[:1])
    assert check.passed
    assert check.sensitivity is not None
    assert check.sensitivity > 1e-2
    for cut in cuts(untied):
        kept = Plan(kept=cut, graph=untied).planned()
        dense = rewrite(untied, kept)
        check_structure(untied, dense, kept)
        assert restricted_statistics(untied, dense, kept, inputs).passed
        plan = Plan(kept=only_exact(untied, cut), graph=untied)
        dense = rewrite(untied, plan.planned())
        assert zero_mask(untied, dense, plan.planned(), inputs).passed
        outputs = ProgramInterpreter(dense)(dense.flat_inputs())
        assert relative_error(outputs, masked_outputs(untied, plan)) < 1e-4


def test_compile_emits_the_graph_and_says_why() -> None:
    target = compiler.Target(width=0.5)
    result = compiler.compile(rotary(), (TOKENS,), target=target, untie_tables=True, measure=False)
    assert result.plan.backend == "graph"
    assert any("its own entries" in note for note in result.report.notes)
    plan = Plan.from_json(result.plan.to_json())
    assert plan.untie_tables
    again = result.plan.apply(rotary(), (TOKENS,))
    assert torch.equal(again(TOKENS), result.model(TOKENS))


class FrozenNorm(nn.Module):
    """A batch norm whose statistics are buffers, as detection models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", floats(6))
        self.register_buffer("shift", floats(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)


class FrozenBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(6, 6), FrozenNorm()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


def test_buffers_of_one_module_are_cut_and_not_selected_from() -> None:
    net = nn.Sequential(conv(4, 6), FrozenBlock(), FrozenBlock(), conv(6, 3))
    graph = capture(net, (floats(3, 4, 6, 6),), untie_tables=True)
    assert graph.inference.tables == {}
    (stream,) = graph.prunable
    assert "1.norm.scale" in Plan(kept={stream: [0, 2]}, graph=graph).slices()


class Sloped(nn.Module):
    """A slope for each head, added to scores laid out as batch x heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.out = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, slopes: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.qk(x).view(n, t, 4, 3).transpose(1, 2).reshape(n * 4, t, 3)
        mixed = (q @ q.transpose(1, 2) + slopes).softmax(-1) @ q
        return x + self.out(mixed.view(n, 4, t, 3).transpose(1, 2).reshape(n, t, 12))


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Sloped(), Sloped()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        slopes = (torch.arange(4) + 1.0).expand(x.shape[0], 4).reshape(-1, 1, 1)
        return self.head(self.second(self.first(x, slopes), slopes))


def test_a_table_laid_out_along_a_dynamic_axis_stays_tied() -> None:
    def heads(**options: Any) -> int:
        graph = capture(Slopes(), (TOKENS,), **options)
        assert graph.program.dynamic
        return sum(d.size == 4 for d in graph.prunable.values())

    assert heads() == heads(untie_tables=True) == 1
