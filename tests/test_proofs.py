"""A proof means something: what compared nothing is said not to be one, and mistakes are seen."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from broken_rules import reversed_cat
from nets import module
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import PassManager, Result, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import VerificationError
from prunec.compiler.inference.rule import RULES, OpRule
from prunec.compiler.verify.check import Check, headline
from prunec.compiler.verify.difference import difference, relative_error
from prunec.compiler.verify.prove import verification_inputs

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 1e-3


def cut(model: nn.Module, *args: Tensor, **options: Any) -> Result:
    pipeline = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    return PassManager(pipeline).run(capture(model.eval(), args), **options)


Ending = Callable[[Any, Tensor], Any]


def joined(ending: Ending, start: Ending = lambda self, x: x) -> nn.Module:
    """Two layers side by side, of which a broken rule exchanges the halves."""

    def forward(self: Any, x: Tensor) -> Any:
        x = start(self, x)
        return ending(self, self.head(torch.cat([self.a(x), self.b(x).relu()], -1)))

    torch.manual_seed(0)
    return module(forward, a=nn.Linear(8, 12), b=nn.Linear(8, 12), head=nn.Linear(24, 6))


def huge_column() -> nn.Module:
    """One column of a scale that would hide a mistake in the others."""
    net = joined(lambda self, y: y * torch.tensor([1e7, 1, 1, 1, 1, 1]))
    nn.init.zeros_(net.head.weight[:1])
    nn.init.ones_(net.head.bias[:1])
    return net


ENDINGS: dict[str, nn.Module] = {
    "positive inputs": joined(lambda self, y: y, lambda self, x: x.log()),
    "roots and powers": joined(lambda self, y: y, lambda self, x: x.sqrt() + x**-1.5),
    "saturated": joined(lambda self, y: (1e4 * y).sigmoid()),
    "saturated to one value": joined(lambda self, y: (1e4 * y.abs() + 100).sigmoid()),
    "one huge column": huge_column(),
    "masked to nothing": joined(lambda self, y: y * 0),
    "uniform": joined(lambda self, y: (1e-8 * y).softmax(-1)),
    "a vanishing share": joined(lambda self, y: 1 + 1e-7 * y),
    "indices": joined(lambda self, y: y.argmax(-1)),
    "halves": joined(lambda self, y: y.half()),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_broken_rule_is_seen_whatever_becomes_of_the_outputs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arguments = tuple(inspect.signature(reversed_cat).parameters)[1:]
    monkeypatch.setitem(RULES, "aten::cat", OpRule("aten::cat", reversed_cat, arguments))
    with pytest.raises(VerificationError, match=r"check failed.*'a:hidden'"):
        cut(ENDINGS[name], X)


@pytest.mark.parametrize("name", ENDINGS)
def test_the_right_rule_passes_whatever_becomes_of_the_outputs(name: str) -> None:
    checks = {c.name: c for c in cut(ENDINGS[name], X).report.checks}
    assert all(c.passed for c in checks.values())
    assert checks["permutation"].state == checks["zero mask"].state == "proven"


NOTHING: dict[str, tuple[nn.Module, str]] = {
    "NaN": (joined(lambda self, y: (-1 - y.abs()).log()), "no finite value"),
    "nothing": (ENDINGS["masked to nothing"], "moves the outputs by"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_check_that_cannot_see_is_not_proven_and_heads_the_report(name: str) -> None:
    model, why = NOTHING[name]
    report = cut(model, X).report
    assert not report.proven
    first = str(report).splitlines()[0]
    assert first.startswith("NOT PROVEN: graph == model")
    assert why in str(report)
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert stored["headline"].startswith("NOT PROVEN")
    assert not stored["proven"]
    assert "not proven" in {c["state"] for c in stored["checks"]}
    assert any(note.startswith("not proven: ") for note in report.notes)


def test_what_is_proven_has_no_headline() -> None:
    report = cut(ENDINGS["positive inputs"], X).report
    assert report.proven
    assert report.headline == ""
    assert "NOT PROVEN" not in str(report)
    for check in report.checks:
        assert check.sensitivity is not None
        assert check.sensitivity > check.limit


@pytest.mark.parametrize("name", NOTHING)
def test_strict_refuses_what_is_not_proven(name: str) -> None:
    model, why = NOTHING[name]
    call: dict[str, Any] = {"target": compiler.Target(width=0.5), "measure": False}
    with pytest.raises(VerificationError, match=rf"graph == model check is not proven: .*{why}"):
        compiler.compile(model, (X,), strict=True, **call)
    result = compiler.compile(model, (X,), **call)
    assert result.verify().passed
    assert not result.verify().proven
    with pytest.raises(VerificationError, match="give example inputs"):
        result.verify(strict=True)


def test_strict_passes_what_is_proven() -> None:
    model = ENDINGS["positive inputs"]
    target = compiler.Target(width=0.5)
    result = compiler.compile(model, (X,), target=target, strict=True, measure=False)
    assert result.verify(strict=True).proven


def test_weights_without_values_prove_nothing() -> None:
    report = cut(joined(lambda self, y: y).to("meta"), X.to("meta")).report
    assert report.headline.startswith("NOT PROVEN: all (weights are on the meta device)")


def test_the_users_own_example_is_proven_on() -> None:
    graph = capture(joined(lambda self, y: y), (X,))
    example, *others = verification_inputs(Compilation(graph))
    assert torch.equal(example[0], X)
    assert not any(torch.equal(x[0], X) for x in others)


class Chosen(nn.Module):
    """Looks its inputs up in a table of six rows: larger integers it cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.age, self.kind = nn.Embedding(90, 8), nn.Embedding(6, 8)
        self.body, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.age(x[:, 0]) + self.kind(x[:, 1])).relu())


def test_columns_that_are_numbers_of_other_things_are_not_exchanged() -> None:
    rows = torch.stack([torch.randint(20, 90, (4,)), torch.randint(0, 6, (4,))], 1)
    assert cut(Chosen(), rows).report.proven


class Branches(nn.Module):
    """Another function beyond a batch of four and below a length of seventeen."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = h * 2 if x.shape[0] > 4 else h
        h = h[:, -16:] if x.shape[1] > 16 else h
        return self.head(self.body(h).relu())


def test_another_batch_and_length_inside_the_range_are_proven() -> None:
    graph = capture(Branches().eval(), (torch.randint(0, 9, (3, 20)),))
    shapes = [tuple(flat[0].shape) for flat in verification_inputs(Compilation(graph))]
    assert shapes[0] == (3, 20)
    (other,) = {s for s in shapes if s != (3, 20)}
    assert other[0] in (1, 2, 4)
    assert other[1] >= 17
    assert other[1] != 20


# what a model returns besides tensors


class Width(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, int, str]:
        h = self.a(x).relu()
        return self.c(self.b(h).relu()), h.shape[-1], "name"


def test_a_width_that_is_returned_stays() -> None:
    graph = capture(Width().eval(), (X,))
    blocked = {d.size: str(d.blocked) for d in graph.dimensions.values() if d.blocked}
    assert "the model returns 24" in blocked[24]
    result = cut(Width(), X)
    assert type(result.model) is Width
    assert result.model(X)[1:] == (24, "name")
    assert result.model.b.out_features == 8


class Halved(Width):
    def forward(self, x: Tensor) -> tuple[Tensor, int, str]:
        h = self.a(x).relu()
        return self.c(self.b(h).relu()), h.shape[-1] // 4, "name"


def test_a_class_that_returns_another_number_is_not_taken() -> None:
    result = cut(Halved(), X)
    assert not isinstance(result.model, Halved)
    assert result.model(X)[1] == 6


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (12, 24, False),
        (24, 24, True),
        (True, False, False),
        ("x", "y", False),
        (None, None, True),
        (None, 3, False),
        (0.5, 0.25, False),
        (float("nan"), float("nan"), True),
        (torch.ones(2), 3, False),
    ],
)
def test_outputs_that_are_no_tensors_are_compared(a: Any, b: Any, same: bool) -> None:
    assert (relative_error([a], [b]) == 0) == same


# errors


def test_a_large_column_hides_no_other() -> None:
    y = torch.rand(6, 4) + 1
    y[:, 2] *= 1e5
    wrong = y.clone()
    wrong[:, 1] *= 1.5
    assert relative_error([wrong], [y]) == pytest.approx(0.5, rel=1e-2)
    images = torch.rand(2, 3, 4, 4)
    images[:, 1] *= 1e5
    other = images.clone()
    other[:, 0] *= 1.5
    assert relative_error([other], [images]) == pytest.approx(0.5, rel=1e-2)


def test_a_column_of_rounding_alone_is_no_error() -> None:
    y = torch.rand(6, 2)
    y[:, 1] *= 1e-12
    noise = y.clone()
    noise[:, 1] += 1e-11
    assert relative_error([noise], [y]) < 1e-4
    exact = [y.double() + torch.tensor([0.0, 3e-7], dtype=torch.float64)]
    noise[:, 1] += 1e-6
    assert relative_error([noise], [y]) > 0.5
    assert difference([noise], [y], exact).error < 1e-4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_agree_in_place_and_kind(bad: float) -> None:
    y = torch.tensor([[1.0, bad], [2.0, 3.0]])
    assert relative_error([y.clone()], [y]) == 0
    assert relative_error([y.nan_to_num()], [y]) == float("inf")
    assert relative_error([y], [y.nan_to_num()]) == float("inf")
    other = y.where(y.isfinite(), -bad if bad == bad else torch.inf)
    assert relative_error([other], [y]) == float("inf")
    assert difference([torch.full((2,), bad)], [torch.full((2,), bad)]).blind == {0}


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (Check("a", 0.0, "float32", 1), "proven"),
        (Check("a", 1.0, "float32", 1), "failed"),
        (Check("a", float("nan"), "float32", 1), "failed"),
        (Check("a", None, "-", 0, skipped="no need"), "skipped"),
        (Check("a", 0.0, "float32", 1, unproven="blind"), "not proven"),
        (Check("a", 1.0, "float32", 1, unproven="blind"), "failed"),
    ],
)
def test_a_check_is_proven_not_proven_skipped_or_failed(check: Check, state: str) -> None:
    assert check.state == state
    assert check.passed == (state != "failed")
    assert bool(headline([check])) == (state == "not proven")


# what must not be cut, or need not be there


class Categories(nn.Module):
    """Pixels are sorted by the token they are nearest to, and neighbours attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 12), nn.Linear(12, 3)
        self.tokens = nn.Parameter(torch.randn(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        nearest = (x @ self.tokens.t()).softmax(-1)
        order = nearest.argmax(-1).sort(-1).indices
        back = order.argsort(-1)
        y = x.gather(1, order[..., None].expand(-1, -1, c)).reshape(b, n // 4, 4, c)
        y = ((y @ y.transpose(-1, -2)).softmax(-1) @ y).reshape(b, n, c)
        return self.head(x + nearest @ self.tokens + y.gather(1, back[..., None].expand(-1, -1, c)))


def test_tokens_whose_numbers_order_neighbours_stay() -> None:
    graph = capture(Categories().eval(), (torch.randn(2, 16, 8),))
    blocked = {d.size: str(d.blocked) for d in graph.dimensions.values() if d.blocked}
    assert "rows sorted by its numbers meet" in blocked[6]
    plan = [passes.MagnitudeScore(), passes.PruneChannels(0.5, include=["head-dim"])]
    assert PassManager([*plan, passes.SparseToDense()]).run(graph).report.proven


class Empty(nn.Module):
    """Layers of width zero on either side of a layer with constant entries."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 4)
        self.d, self.f, self.w = nn.Linear(12, 0), nn.Linear(0, 4), nn.Parameter(torch.zeros(12, 0))
        nn.init.zeros_(self.b.weight[:3])
        nn.init.ones_(self.b.bias[:3])

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x).relu()
        return self.c(h) + self.f(self.d(h).relu()) + self.f(h @ self.w) + self.f(x[:, :0])


def test_layers_of_width_zero_are_no_obstacle() -> None:
    result = cut(Empty(), X)
    assert result.report.proven
    assert isinstance(result.model, Empty)
