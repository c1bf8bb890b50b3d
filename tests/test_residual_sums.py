"""Repair towards a residual sum: which sums are found, and what is solved for before one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from repair_cases import EXACT, best, data, repaired, seeded
from torch import Tensor, nn

from prunec import compiler
from prunec.passes.reconstruction.sums import find_sum


class Residual(nn.Module):
    """Two cut branches on one stream; `behind` lies between the second and its sum."""

    def __init__(self, behind: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 8)
        self.c, self.d = nn.Linear(8, 24), nn.Linear(24, 8)
        self.behind = behind()

    def stream(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))

    def hidden(self, s: Tensor) -> Tensor:
        return torch.relu(self.c(s))

    def forward(self, x: Tensor) -> Tensor:
        s = self.stream(x)
        return s + self.behind(self.d(self.hidden(s)))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 2.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def moved_norm() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


@pytest.mark.parametrize("behind", [nn.Identity, Scale, moved_norm, lambda: nn.Dropout(0.3)])
def test_the_last_layer_of_a_branch_makes_up_for_the_stream(
    behind: Callable[[], nn.Module],
) -> None:
    model = seeded(lambda: Residual(behind))
    batches = data(60, 8)
    raw, result = repaired(model, batches)
    found, x = result.model, torch.cat(batches)
    assert not torch.allclose(found.stream(x), model.stream(x))
    zero, one = torch.zeros(1, 8, dtype=x.dtype), torch.ones(1, 8, dtype=x.dtype)
    shift = model.behind(zero)
    scale = model.behind(one) - shift
    wanted = (model(x) - found.stream(x) - shift) / scale
    weight, bias = best(found.hidden(found.stream(x)), wanted)
    torch.testing.assert_close(found.d.weight.T, weight)
    if not isinstance(model.behind, nn.BatchNorm1d):  # there the bias may be the norm's mean
        torch.testing.assert_close(found.d.bias, bias)
    before, after = (float((m(x) - model(x)).square().sum()) for m in (raw.model, found))
    assert after < before


def sums(model: nn.Module, *inputs: Tensor) -> dict[str, str | None]:
    """Per linear layer of the model, what its sum adds."""
    program = compiler.capture(model, inputs).program
    layers = [n for n in program.graph.nodes if "linear" in str(n.target)]
    found = {n.args[1].target: find_sum(n, layers) for n in layers}
    return {name: None if s is None else s.other.name for name, s in found.items()}


def test_layers_inside_a_branch_have_no_sum() -> None:
    found = sums(Residual(), torch.randn(4, 8))
    assert found["a.weight"] is None
    assert found["c.weight"] is None
    assert found["b.weight"] is not None
    assert found["d.weight"] is not None


class Parallel(nn.Module):
    """Of two layers that are summed the last one to run knows the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(x)
        return one + two


def test_a_side_that_is_not_known_yet_is_no_target() -> None:
    found = sums(Parallel(), torch.randn(4, 8))
    assert found["one.weight"] is None
    assert found["two.weight"] == "linear"


class Odd(nn.Module):
    """Sums that are no residual sum of the layer: scaled, doubled, read twice, behind a relu."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(8, 8), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.kind == "alpha":
            return torch.add(x, y, alpha=2)
        if self.kind == "doubled":
            return y + y
        if self.kind == "read twice":
            return (x + y) * y
        if self.kind == "broadcast":
            return x[:1] * 2 + y[:, None]
        return x + torch.relu(y)


@pytest.mark.parametrize("kind", ["alpha", "doubled", "read twice", "broadcast", "relu"])
def test_other_sums_are_left_alone(kind: str) -> None:
    assert sums(Odd(kind), torch.randn(4, 8)) == {"layer.weight": None}


def test_a_branch_in_another_shape_is_solved_too() -> None:
    """As a layer on flattened rows is: the error goes back through the view."""

    class Flat(Residual):
        def forward(self, x: Tensor) -> Tensor:
            s = self.stream(x)
            return s + self.d(self.hidden(s).flatten(0, 1)).view(s.shape)

    model, batches = seeded(Flat), data(10, 6, 8)
    _, result = repaired(model, batches, ridge=EXACT)
    found, x = result.model, torch.cat(batches)
    s = found.stream(x)
    weight, _ = best(found.hidden(s).flatten(0, 1), (model(x) - s).flatten(0, 1))
    torch.testing.assert_close(found.d.weight.T, weight)
