"""Models that were called before they are captured, and kept something of that call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec import compiler


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 6)

    def body(self, x):
        return self.b(torch.relu(self.a(x)))


class ByShape(Net):
    grid = None

    def forward(self, x):
        if self.grid is None or self.grid.shape[0] != x.shape[0]:
            self.grid = torch.ones(x.shape[0], 1)
        return self.body(x) + self.grid


class Once(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = (torch.ones(x.shape[0], 1), torch.zeros(x.shape[0], 1))
        return self.body(x) * self.cache[0] + self.cache[1]


class ByNumber(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.grid = -1, None

    def forward(self, x):
        if x.shape[0] != self.rows:
            self.rows, self.grid = x.shape[0], torch.ones(x.shape[0], 1)
        return self.body(x) + self.grid


class Made(Net):
    def forward(self, x):
        if not hasattr(self, "grid"):
            self.grid = torch.ones(x.shape[0], 1)
        return self.body(x) + self.grid


class AsBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", None, persistent=False)

    def forward(self, x):
        if self.grid is None or len(self.grid) != len(x):
            self.grid = torch.ones(x.shape[0], 1)
        return self.body(x) + self.grid


class InList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.grids = []

    def forward(self, x):
        if not self.grids:
            self.grids.append(torch.ones(x.shape[0], 1))
        return self.body(x) + self.grids[0]


class Table:
    def __init__(self) -> None:
        self.grid = None

    def get(self, rows):
        if self.grid is None or self.grid.shape[0] != rows:
            self.grid = torch.ones(rows, 1)
        return self.grid


class InObject(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def forward(self, x):
        return self.body(x) + self.table.get(x.shape[0])


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid = torch.empty(0)

    def forward(self, x):
        if self.grid.shape[0] != x.shape[0]:
            self.grid = torch.ones(x.shape[0], 1)
        return x + self.grid


class Below(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(self.body(x))


CLASSES = (ByShape, Once, ByNumber, Made, AsBuffer, InList, InObject, Below)


def _state(model: nn.Module) -> dict:
    found = {}
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, (torch.Tensor, int, tuple)) and name != "training":
                found[path, name] = value
    return found


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("before", [2, 3])
def test_a_cache_that_an_earlier_call_filled_does_not_fix_the_batch(cls, before):
    torch.manual_seed(0)
    model, x = cls().eval(), torch.randn(3, 8)
    if before != 3 and cls in (Once, Made, InList):
        pytest.skip("such a model does not run at another batch by itself")
    model(torch.randn(before, 8))
    held = _state(model)
    result = compiler.compile(model, (x,), target=compiler.Target(params=0.6), measure=False)
    assert _state(model).keys() == held.keys()
    assert all(_state(model)[key] is value for key, value in held.items())
    fresh = cls().eval()
    fresh.load_state_dict(model.state_dict())
    call = compiler.capture(fresh, (x,)).program.call
    assert compiler.capture(model, (x,)).program.call.describe() == call.describe()
    assert type(result.model) is cls
    for rows in (2, 5, 3):
        other = torch.randn(rows, 8)
        expected = result.graph_module(other)
        if cls not in (Once, Made, InList):
            assert torch.allclose(result.model(other), expected, atol=1e-5)
    assert any("earlier call" in note for note in result.report.notes)


def test_a_length_cache_does_not_bound_the_length():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 24), nn.Linear(24, 6)
            self.table = None

        def forward(self, ids):
            if self.table is None or self.table.shape[0] < ids.shape[1]:
                self.table = torch.arange(ids.shape[1]).float()[:, None].cos()
            return self.b(torch.relu(self.a(self.e(ids) + self.table[: ids.shape[1]])))

    model, ids = Tokens().eval(), torch.randint(0, 10, (3, 7))
    model(ids)
    result = compiler.compile(model, (ids,), target=compiler.Target(params=0.8), measure=False)
    longer = torch.randint(0, 10, (2, 11))
    assert torch.allclose(result.graph_module(longer), result.model(longer), atol=1e-5)


def test_what_is_no_cache_stays_where_a_size_is_bounded():
    class Bounded(Net):
        def __init__(self) -> None:
            super().__init__()
            self.factor, self.rows = torch.full((3, 1), 2.0), 3

        def forward(self, x):
            return self.body(x) * self.factor + self.rows

    model, x = Bounded().eval(), torch.randn(3, 8)
    graph = compiler.capture(model, (x,))
    assert graph.source is model
    assert not any("earlier call" in note for note in graph.program.notes)


def test_a_buffer_that_forward_registers_is_no_input_that_is_written_to():
    class Registers(Net):
        def forward(self, x):
            if not hasattr(self, "place"):
                self.register_buffer("place", torch.arange(x.shape[1]).float(), persistent=False)
            return self.body(x + self.place)

    model, x = Registers().eval(), torch.randn(3, 8)
    result = compiler.compile(model, (x,), target=compiler.Target(params=0.6), measure=False)
    assert not hasattr(model, "place")
    assert "register_buffer" not in vars(model)
    assert type(result.model) is Registers
    other = torch.randn(5, 8)
    given = other.clone()
    assert torch.allclose(result.graph_module(other), result.model(other), atol=1e-5)
    assert torch.equal(other, given)


def test_an_empty_buffer_before_a_full_one_does_not_write_to_it():
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", None)
            self.register_buffer("second", torch.full((1,), 3.0))

        def forward(self, x):
            self.first = torch.ones(1)
            return self.body(x) * self.second + self.first

    graph = compiler.capture(Two().eval(), (torch.randn(3, 8),))
    assert not any("copy_" in str(n.target) for n in graph.program.graph.nodes)


def test_the_report_states_the_range_of_every_size_that_may_vary():
    class Branches(Net):
        def forward(self, x):
            y = self.body(x)
            return y if x.shape[0] <= 4 else y * 2

    call = (torch.randn(3, 8),)
    target = compiler.Target(params=0.6)
    report = compiler.compile(Branches().eval(), call, target=target, measure=False).report
    axis = {"input": "x", "axis": 0, "low": None, "high": 4, "step": 1}
    assert report.to_json()["sizes"] == {"axes": [axis], "within": ["axis 0 of 'x': at most 4"]}


def test_a_table_of_positions_with_room_stays_a_tensor_and_the_class_is_kept():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 24), nn.Linear(24, 6)
            self.make(64)

        def make(self, longest):
            angles = torch.arange(longest)[:, None] * torch.arange(1, 9)
            self.register_buffer("table", angles.float().sin(), persistent=False)

        def forward(self, ids):
            if ids.shape[1] > self.table.shape[0]:
                self.make(ids.shape[1])
            return self.b(torch.relu(self.a(self.e(ids) + self.table[: ids.shape[1]])))

    model, ids = Tokens().eval(), torch.randint(0, 10, (3, 7))
    result = compiler.compile(model, (ids,), target=compiler.Target(params=0.6), measure=False)
    assert type(result.model) is Tokens
    assert "table" in result.plan.slices()
    assert "64" in str(result.report.to_json()["sizes"])
