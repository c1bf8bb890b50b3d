"""DropLayers: what is left of the class, the dimensions, and the passes behind it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from drop_cases import batches, dropped, outputs, squared_error
from nets_of_depth import PICTURES, ROWS, Inline, Mlp, Nested, Residual, Stack, made
from tiny_models import parameters
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import PassManager, Plan, capture
from prunec.passes import DropLayers, SparseToDense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "args", "x"),
    [
        (Stack, (True,), ROWS),
        (Stack, (False,), ROWS),
        (Inline, (), ROWS),
        (Nested, (), ROWS),
        (Residual, (False,), PICTURES),
        (Residual, (True,), PICTURES),
    ],
)
@pytest.mark.parametrize("unit", ["branch", "any"])
def test_half_of_everything(kind: Any, args: Any, x: Tensor, unit: str) -> None:
    model = made(kind, *args)
    result = dropped(model, (x,), list(x.split(2)), unit=unit, ratio=0.5)
    checks = {c.name: c for c in result.report.checks}
    assert checks["dropped branches"].error is not None
    assert all(c.passed for c in result.report.checks)
    assert result.report.before.params == parameters(model)
    assert result.graph_module is not None
    assert result.report.after.params == parameters(result.graph_module)
    again = Plan.from_json(result.plan.to_json())
    assert again == result.plan
    fresh = again.apply(made(kind, *args), (x,))
    assert isinstance(fresh, kind) is isinstance(result.model, kind)
    assert torch.equal(outputs(fresh, x), outputs(result.model, x))
    assert result.verify().passed


def test_members_leave_the_class_and_the_rest_is_numbered_anew(tmp_path: pathlib.Path) -> None:
    model = made(Stack)
    result = dropped(model, (ROWS,), count=1, include="layers.1")
    assert type(result.model) is Stack
    assert result.model.num_layers == 2
    assert result.plan.members == {"layers": [1]}
    kept = result.model.get_parameter("layers.1.mlp.up.weight")
    assert torch.equal(kept, model.get_parameter("layers.2.mlp.up.weight"))
    assert len(model.get_submodule("layers")) == 3  # type: ignore[arg-type]
    result.save(tmp_path / "small")
    loaded = compiler.load(tmp_path / "small", model=made(Stack))
    assert type(loaded) is Stack
    assert torch.equal(outputs(loaded, ROWS), outputs(result.model, ROWS))
    graph = compiler.load(tmp_path / "small", graph=True)
    assert torch.allclose(outputs(graph, ROWS), outputs(result.model, ROWS), atol=1e-6)
    branches = json.loads((tmp_path / "small" / "report.json").read_text())["branches"]
    assert [b["state"] for b in branches] == ["kept", "dropped", "kept"]


def test_a_stub_stands_for_a_branch_s_module(tmp_path: pathlib.Path) -> None:
    model = made(Stack)
    result = dropped(
        model, (ROWS,), unit="branch", count=1, include="layers.1.mlp", replace="nothing"
    )
    assert type(result.model) is Stack
    assert result.plan.stubs == {"layers.1.mlp": "zero", "layers.1.two": "zero"}
    assert parameters(result.model) == result.report.after.params
    result.save(tmp_path / "small")
    loaded = compiler.load(tmp_path / "small", model=made(Stack))
    assert torch.equal(outputs(loaded, ROWS), outputs(result.model, ROWS))


class Gated(nn.Module):
    """A sum inside a module of its own, whose branch is zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * (x - x.mean(-1, keepdim=True))


def test_a_module_that_held_the_sum_passes_its_input_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Sequential(Gated(), nn.ReLU()), nn.Linear(8, 5)
    ).eval()
    result = PassManager([SparseToDense()]).run(capture(model, (ROWS,)))
    assert isinstance(result.model, nn.Sequential)
    assert len(result.model) == 3
    assert parameters(result.model) == parameters(model) - 8
    assert torch.equal(outputs(result.model, ROWS), outputs(model, ROWS))


class Scaled(nn.Module):
    """A branch whose scale no module of its own holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp, self.head = nn.Linear(8, 8), Mlp(), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.scale * self.mlp(x))


def test_what_the_class_keeps_of_a_branch_is_counted() -> None:
    result = dropped(made(Scaled), (ROWS,), unit="branch", count=1)
    assert type(result.model) is Scaled
    assert parameters(result.model) == result.report.after.params
    assert result.graph_module is not None
    assert parameters(result.graph_module) == result.report.after.params - 8


def test_dimensions_of_a_dropped_branch_are_gone() -> None:
    model = made(Stack)
    steps = [
        DropLayers(unit="branch", count=1, include="layers.1.mlp"),
        passes.MagnitudeScore(),
        passes.PruneChannels(0.5),
        SparseToDense(),
    ]
    result = PassManager(steps).run(capture(model, (ROWS,)))
    rows = {d.name: d for d in result.report.dimensions}
    gone = [d for d in rows.values() if d.state == "dropped"]
    assert [(d.before, d.after, d.kind) for d in gone] == [(12, 0, "hidden")]
    assert gone[0].reason == "gone with dropped branch 'layers.1.mlp'"
    assert not any("layers.1.mlp" in name for name in result.plan.kept)
    assert all(c.passed for c in result.report.checks)
    hidden = result.model.get_parameter("layers.0.mlp.up.weight")
    assert hidden.shape == (6, 4)
    assert parameters(result.model) == result.report.after.params


def test_dropped_twice_is_dropped_at_once() -> None:
    model = made(Stack)
    twice = [DropLayers(count=1), DropLayers(count=1), SparseToDense()]
    result = PassManager(twice).run(capture(model, (ROWS,)))
    once = dropped(model, (ROWS,), count=2)
    assert {d.name for d in result.plan.dropped} == {d.name for d in once.plan.dropped}
    assert torch.equal(outputs(result.model, ROWS), outputs(once.model, ROWS))
    assert sum(b.state == "dropped" for b in result.report.branches) == 2


def test_a_branch_then_the_block_around_it() -> None:
    model = made(Stack, False)
    steps = [
        DropLayers(unit="branch", count=1, include="layers.1.mlp.up.weight"),
        DropLayers(count=1, include="layers.1"),
        DropLayers(count=1, include="layers.2"),
        SparseToDense(),
    ]
    result = PassManager(steps).run(capture(model, (ROWS,)))
    assert result.plan.members == {"layers": [1, 2]}
    layers: Any = model.get_submodule("layers")
    with torch.no_grad():
        expected = model.head(model.norm(layers[0](model.stem(ROWS))))  # type: ignore[operator]
    assert torch.allclose(outputs(result.model, ROWS), expected, atol=1e-6)


def test_before_the_rewrite_the_model_is_the_masked_one_without_the_branch() -> None:
    model = made(Stack)
    steps = [
        DropLayers(count=1),
        passes.MagnitudeScore(),
        passes.PruneChannels(0.5, exact_only=True),
    ]
    graph = capture(model, (ROWS,))
    masked = PassManager(steps).run(graph).model
    dense = PassManager([*steps, SparseToDense()]).run(graph).model
    assert torch.allclose(outputs(masked, ROWS), outputs(dense, ROWS), atol=1e-5)


def test_repair_and_distillation_after_it() -> None:
    """Reconstruct fits what remains to the original, the dropped branch included."""
    model = made(Stack).double()
    data = [x.double() for x in batches(16, 6, 8)]
    graph = capture(model, (data[0],))
    steps = [
        DropLayers(unit="branch", count=2),
        passes.MagnitudeScore(),
        passes.PruneChannels(0.25, include="hidden"),
        SparseToDense(),
        passes.Reconstruct(progress=False),
    ]
    result = PassManager(steps).run(graph, data)
    before, after = result.report.passes[-1].details["output error"]
    assert after < 0.5 * before
    trained = PassManager([*steps, passes.Distill(data, epochs=1, objective="embedding")])
    assert all(c.passed for c in trained.run(graph, data).report.checks)


@pytest.mark.parametrize("replace", ["mean", "nothing"])
def test_the_layer_before_a_dropped_branch_learns_what_it_can_of_it(replace: str) -> None:
    """Its target is the original's stream behind the branch: by its bias alone that is the mean."""
    model, data = made(Stack), batches(16, 6, 8)
    steps = [
        DropLayers(unit="branch", count=1, include="layers.1.mix", replace=replace),
        SparseToDense(),
    ]
    graph = capture(model, (ROWS,))
    raw = PassManager(steps).run(graph, data)
    result = PassManager([*steps, passes.Reconstruct(progress=False)]).run(graph, data)
    layer = result.report.passes[-1].details["layers"]["layers.0.mlp.down.weight"]
    assert layer["kind"] == "least squares"
    assert layer["after"] < 0.9 * layer["before"]
    rows = torch.cat(data)
    errors = [squared_error(outputs(r.model, rows), outputs(model, rows)) for r in (result, raw)]
    assert errors[0] < 0.5 * errors[1]


def test_batch_norms_after_it() -> None:
    model, data = made(Residual), batches(8, 3, 8, 8)
    steps = [DropLayers(count=1), SparseToDense(), passes.RecalibrateBatchNorm()]
    result = PassManager(steps).run(capture(model, (PICTURES,)), data)
    assert len(result.report.passes[-1].details["norms"]) == 6


def test_a_dimension_that_went_with_a_branch_may_be_excluded_and_included() -> None:
    graph = capture(made(Stack), (ROWS,))
    gone = next(name for name in graph.prunable if name.startswith("layers.1.mlp"))
    steps = [
        passes.DropLayers(count=1, include="layers.1"),
        passes.MagnitudeScore(),
        passes.PruneChannels(0.5, include=["hidden", gone], exclude=gone),
        SparseToDense(),
    ]
    assert gone not in PassManager(steps).run(graph).plan.kept
