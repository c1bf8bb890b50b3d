"""What a graph was captured for: sizes, constants and dtypes that a call must have."""

import json

import pytest
import torch
from torch import nn

from prunec import compiler
from prunec.compiler.errors import ArtifactError, CallError
from prunec.compiler.ir.call_spec import CallSpec

AUTO = torch.export.Dim.AUTO


class Model(nn.Module):
    """Two layers and a branch on sizes, given as a function of the input."""

    def __init__(self, branch, flag=None):
        super().__init__()
        self.a, self.b, self.branch = nn.Linear(8, 24), nn.Linear(24, 8), branch

    def forward(self, x, flag=False, count=3):
        y = self.b(torch.relu(self.a(x if self.branch(x) else -x)))
        return y * count if flag else y


def captured(branch, rows=3, shape=(8,), **options):
    return compiler.capture(Model(branch).eval(), (torch.randn(rows, *shape),), **options)


def test_a_branch_on_the_batch_bounds_it():
    program = captured(lambda x: x.shape[0] <= 4).program
    program.flat_inputs((torch.randn(4, 8),))
    program.flat_inputs((torch.randn(1, 8),))
    with pytest.raises(CallError, match=r"axis 0 of 'x' is 9, .* at most 4"):
        program.flat_inputs((torch.randn(9, 8),))


def test_a_lower_end_that_the_model_asked_for_is_kept():
    program = captured(lambda x: x.shape[0] >= 5, rows=8).program
    with pytest.raises(CallError, match="at least 5"):
        program.flat_inputs((torch.randn(4, 8),))


@pytest.mark.parametrize(
    "use", [lambda x: x[:, :-1], lambda x: x[:, 2:], lambda x: x[:, -4:], lambda x: x]
)
def test_a_lower_end_of_torchs_own_is_none(use):
    graph = captured(
        lambda x: use(x).sum() is not None, shape=(6, 8), dynamic_shapes={"x": {0: AUTO, 1: AUTO}}
    )
    assert graph.program.call.describe() == []
    for size in (0, 1, 2):
        graph.program.flat_inputs((torch.randn(1, size, 8),))


def test_one_excluded_size_and_a_parity_are_conditions():
    excluded = captured(lambda x: x.shape[0] != 5).program
    with pytest.raises(CallError, match="!= 5"):
        excluded.flat_inputs((torch.randn(5, 8),))
    odd = captured(lambda x: x.shape[0] % 2 == 1).program
    odd.flat_inputs((torch.randn(7, 8),))
    with pytest.raises(CallError, match="% 2"):
        odd.flat_inputs((torch.randn(4, 8),))


def test_two_sizes_compared_are_a_condition():
    shapes = {"x": {0: AUTO, 1: AUTO}}
    program = captured(
        lambda x: x.shape[0] < x.shape[1], shape=(6, 8), dynamic_shapes=shapes
    ).program
    with pytest.raises(CallError, match="axis 0 of 'x' = 7 and axis 1 of 'x' = 6"):
        program.flat_inputs((torch.randn(7, 6, 8),))


def test_sizes_that_depend_on_each_other_must_agree():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x, y):
            return self.a(x) + y.repeat_interleave(2, 0)

    program = compiler.capture(Two().eval(), (torch.randn(6, 8), torch.randn(3, 8))).program
    program.flat_inputs((torch.randn(8, 8), torch.randn(4, 8)))
    with pytest.raises(CallError, match="multiples of 2"):
        program.flat_inputs((torch.randn(7, 8), torch.randn(4, 8)))
    with pytest.raises(CallError, match="goes with"):
        program.flat_inputs((torch.randn(6, 8), torch.randn(4, 8)))


@pytest.mark.parametrize(("name", "other"), [("flag", True), ("count", 4), ("count", None)])
def test_another_constant_is_refused(name, other):
    program = captured(lambda x: True, kwargs={"flag": False, "count": 3}).program
    program.flat_inputs((torch.randn(2, 8),), {"flag": False})
    with pytest.raises(CallError, match=f"'{name}' is {other}"):
        program.flat_inputs((torch.randn(2, 8),), {name: other})


def test_another_kind_of_number_is_refused_and_another_precision_is_not():
    program = captured(lambda x: True).program
    program.flat_inputs((torch.randn(2, 8).double(),))
    with pytest.raises(CallError, match=r"int64.*\.to\(torch\.float32\)"):
        program.flat_inputs((torch.ones(2, 8).long(),))


def stored(spec):
    return json.loads(json.dumps(spec.to_json(), allow_nan=False))


def test_a_description_survives_json():
    spec = captured(
        lambda x: x.shape[0] % 2 == 1 and x.shape[0] < 60, kwargs={"flag": False, "count": 3}
    ).program.call
    assert CallSpec.from_json(stored(spec)) == spec


def _forged():
    spec = captured(lambda x: x.shape[0] % 2 == 1 and x.shape[0] < 60).program.call
    deep = 0
    for _ in range(5000):
        deep = ["+", deep, 1]
    for change in (
        {"inputs": [{"name": "x", "dtype": "__class__", "axes": []}]},
        {"inputs": [{"name": "x\n", "dtype": "float32", "axes": [1]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "axes": [True]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "axes": [[0, "s0", 0]]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "axes": [10**30]}]},
        {"inputs": [{"name": "x", "constant": [1], "kind": "plain"}]},
        {"inputs": [{"name": "x", "constant": "1e", "kind": "int"}]},
        {"inputs": {}},
        {"ranges": {"s9": [1, 2]}},
        {"ranges": {"s0": [1.5, 2]}},
        {"conditions": [["!=", ["**", 9, 9], 1]]},
        {"conditions": [["!=", ["%", "s0", 2, 3], 1]]},
        {"conditions": [["!=", "unknown", 1]]},
        {"conditions": [["!=", deep, 1]]},
        {"conditions": [[["!="], 1, 1]]},
        {"extra": 1},
    ):
        yield {**stored(spec), **change}
    yield None


def test_a_forged_description_is_refused():
    for data in _forged():
        with pytest.raises(ArtifactError):
            CallSpec.from_json(data)
