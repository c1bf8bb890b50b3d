"""The user's model, inputs and process are after a capture or compile what they were before."""

import copy
import functools
import pickle
import random
import typing

import numpy as np
import pytest
import torch
from torch import nn

from prunec import compiler
from prunec.compiler.capture.untouched import copy_on_write, untouched
from prunec.compiler.errors import CaptureError

X = torch.randn(2, 3, 8, 8)


class Cached(nn.Module):
    """Two convolutions around what a subclass adds: a grid that it keeps."""

    grid = None
    shape = None

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.start()

    def start(self):
        pass

    def made(self, x):
        return torch.arange(x.shape[3]).float() * x.new_ones(x.shape[0], 1, 1, 1)

    def kept(self, x):
        if self.grid is None or self.shape != x.shape:
            self.shape, self.grid = x.shape, self.made(x)
        return self.grid

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) + self.kept(x)


class InList(Cached):
    def start(self):
        self.grids = [None]

    def kept(self, x):
        if self.grids[0] is None:
            self.grids[0] = self.made(x)
        return self.grids[0]


class InDict(Cached):
    def start(self):
        self.grids, self.sizes = {}, set()

    def kept(self, x):
        self.grids["last"] = self.made(x)
        self.sizes.add("seen")
        return self.grids["last"]


class Holder:
    grid = None


class InObject(Cached):
    def start(self):
        self.holder = Holder()

    def kept(self, x):
        self.holder.grid = self.made(x)
        return self.holder.grid


class OnClass(Cached):
    table: typing.ClassVar = {}

    def kept(self, x):
        OnClass.latest = OnClass.table["x"] = self.made(x)
        return OnClass.latest


class Counts(Cached):
    def start(self):
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.loose = torch.zeros(1)

    def kept(self, x):
        self.calls += 1
        self.loose.add_(1)
        return self.made(x)


@functools.lru_cache
def remembered(size):
    return torch.arange(size).float()


class Remembers(Cached):
    def kept(self, x):
        return remembered(x.shape[3]) * x.new_ones(x.shape[0], 1, 1, 1)


CACHED = [Cached, InList, InDict, InObject, OnClass, Counts, Remembers]


def plain(value):
    if isinstance(value, nn.Module | Holder):
        return type(value).__name__, plain(vars(value))
    if isinstance(value, torch.Tensor):
        return type(value).__name__, value.tolist(), id(value)
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    return [plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)


@pytest.mark.parametrize("cls", CACHED, ids=lambda cls: cls.__name__)
def test_capture_leaves_attributes_as_they_were(cls):
    model = cls().train()
    before = plain(model)
    for _ in range(2):
        compiler.capture(model, (X,))
        assert plain(model) == before
    pickle.dumps(model)
    copy.deepcopy(model)
    assert not hasattr(OnClass, "latest")
    assert not OnClass.table
    assert type(remembered(8)) is torch.Tensor
    remembered.cache_clear()


@pytest.mark.parametrize("cls", [Cached, InDict, Counts], ids=lambda cls: cls.__name__)
def test_compile_leaves_attributes_as_they_were_and_keeps_the_class(cls):
    model = cls()
    before = plain(model)
    result = compiler.compile(model, X, target=compiler.Target(params=0.5), measure=False)
    assert type(result.model) is cls
    assert plain(model) == before


def test_a_model_that_fails_is_left_as_it_was():
    class Fails(Cached):
        def forward(self, x):
            y = super().forward(x)
            raise RuntimeError(f"no {tuple(y.shape)}")

    model = Fails().train()
    hook = model.a.register_forward_hook(lambda *_: None)
    before = plain(model)
    with pytest.raises(CaptureError):
        compiler.capture(model, (X,))
    assert plain(model) == before
    assert list(model.a._forward_hooks) == [hook.id]


def test_random_states_and_global_flags_are_as_they_were():
    class Draws(Cached):
        def kept(self, x):
            random.random()
            np.random.rand()
            torch.set_default_dtype(torch.float64)
            return torch.rand(1, 1, 1, 8, dtype=x.dtype)

    models = Draws(), Cached()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with untouched(models[0]):
        models[0](X)
    compiler.capture(models[1], (X,))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert torch.get_default_dtype() == torch.float32


def test_gradients_and_data_of_parameters_are_as_they_were():
    model = Cached()
    model(X).sum().backward()
    grads = [p.grad for p in model.parameters()]
    places = [p.data_ptr() for p in model.parameters()]
    with untouched(model):
        model.zero_grad()
        model.a.weight.requires_grad_(False)
        model.a.weight.data = torch.zeros_like(model.a.weight)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == places
    assert model.a.weight.requires_grad


def test_weights_that_a_forward_writes_to_are_given_back():
    model = nn.Embedding(10, 4, max_norm=0.01)
    before = model.weight.detach().clone()
    with torch.no_grad(), copy_on_write(model):
        model(torch.arange(10))
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, features):
        features["x"].mul_(2)
        features["y"] = self.b(torch.relu(self.a(features["x"])))
        return features


def test_a_forward_that_writes_into_its_inputs_changes_none_of_the_users():
    x = torch.randn(4, 8)
    call, batches = {"x": x}, [({"x": torch.randn(4, 8)},) for _ in range(2)]
    before = [x.clone(), *(b[0]["x"].clone() for b in batches)]
    result = compiler.compile(
        Writes().eval(),
        (call,),
        target=compiler.Target(params=0.5),
        outputs="y",
        calibration=batches,
    )
    assert list(call) == ["x"]
    assert all(list(b[0]) == ["x"] for b in batches)
    after = [x, *(b[0]["x"] for b in batches)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(check.passed for check in result.report.checks)
