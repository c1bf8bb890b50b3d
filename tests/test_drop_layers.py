"""DropLayers: what goes, what takes its place, and what the report and the plan say of it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from drop_cases import batches, capture_and_drop, dropped, outputs, silenced, squared_error
from nets_of_depth import PICTURES, ROWS, Inline, Residual, Stack, made
from tiny_models import parameters
from torch import Tensor, nn

from prunec import passes
from prunec.compiler import PassManager, capture
from prunec.compiler.errors import PassOrderError, PlanError, VerificationError
from prunec.compiler.inference.branches import find_branches
from prunec.compiler.ir import drop as drop_module
from prunec.compiler.recipe import build_pipeline, read_recipe
from prunec.passes import DropLayers, SparseToDense
from prunec.passes.calibration.effects import branch_effects, channel_axis

# what goes


def test_a_branch_that_is_zero_goes_first_and_changes_nothing() -> None:
    model = silenced(made(Stack), "layers.1.mlp.down")
    result = dropped(model, (ROWS,), unit="branch", tolerance=1e-6)
    assert [d.name for d in result.plan.dropped] == ["layers.1.mlp"]
    assert torch.allclose(outputs(result.model, ROWS), outputs(model, ROWS), atol=1e-6)
    assert type(result.model) is Stack
    assert "output error 0" in result.report.passes[0].summary
    assert "random inputs" in result.report.passes[0].summary


def test_a_zero_branch_goes_by_itself() -> None:
    """Found by SparseToDense alone, as dead entries are; not with dead=False."""
    model = silenced(made(Stack, False), "layers.1.mlp.down")
    result = PassManager([SparseToDense()]).run(capture(model, (ROWS,)))
    assert [d.result for d in result.plan.dropped]
    assert "layers.1.mlp.up.weight" not in dict(result.model.named_parameters())
    assert torch.allclose(outputs(result.model, ROWS), outputs(model, ROWS), atol=1e-6)
    assert result.report.passes[0].details["zero branches"] == ["layers.1.mlp"]
    with pytest.raises(PlanError, match="nothing to remove"):
        PassManager([SparseToDense(dead=False)]).run(capture(model, (ROWS,)))


def test_zero_branches_go_from_a_model_whose_widths_are_planned() -> None:
    model = silenced(made(Stack), "layers.1.mlp.down")
    cut = [passes.MagnitudeScore(), passes.PruneChannels(0.5, include="hidden"), SparseToDense()]
    result = PassManager(cut).run(capture(model, (ROWS,)))
    assert [d.name for d in result.plan.dropped] == ["layers.1.mlp"]
    assert len(result.plan.kept) == 2  # the hidden width of the branch is gone with it
    assert result.model.get_parameter("layers.0.mlp.up.weight").shape == (6, 8)


@pytest.mark.parametrize("unit", ["block", "branch", "any"])
def test_what_has_least_effect_goes(unit: str) -> None:
    """The measured effect is that of the finished model on the data."""
    model = made(Stack)
    data = batches(4, 6, 8)
    result = dropped(model, (ROWS,), data, unit=unit, count=1, replace="nothing")
    found = result.report.passes[0].details["dropped"]
    errors = {b.name: b.error for b in result.report.branches if b.error is not None}
    assert list(found) == [min(errors, key=lambda name: errors[name] or 0.0)]
    rows = torch.cat(data)
    expected = squared_error(outputs(result.model, rows), outputs(model, rows))
    assert found == {name: pytest.approx(expected, rel=1e-3) for name in found}


class Shifts(nn.Module):
    """Layers that add 1, -1.5 and, to another channel, 1.2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        with torch.no_grad():
            for layer, channel, shift in zip(self.layers, (0, 0, 1), (1.0, -1.5, 1.2), strict=True):
                for p in layer.parameters():
                    p.zero_()
                layer.bias[channel] = shift  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_effects_are_measured_again_after_each_removal() -> None:
    """Without the first layer, the second has less effect than the third, which has less alone."""
    data = batches(4, 6, 8)
    result = dropped(Shifts(), (ROWS,), data, unit="branch", count=2, replace="nothing")
    energy = outputs(Shifts(), torch.cat(data)).square().mean((0, 1)).sum()
    errors = result.report.passes[0].details["dropped"]
    assert list(errors) == ["layers.0", "layers.1"]
    assert errors["layers.0"] == pytest.approx(1 / float(energy), rel=1e-4)
    assert errors["layers.1"] == pytest.approx(0.25 / float(energy), rel=1e-4)
    kept = next(b for b in result.report.branches if b.state == "kept")
    assert kept.error == pytest.approx((1 + 1.44) / float(energy), rel=1e-4)


def test_ratio_count_and_tolerance() -> None:
    model = made(Stack)
    assert len(dropped(model, (ROWS,), unit="branch", ratio=0.5).plan.dropped) == 3
    assert len(dropped(model, (ROWS,), ratio=0.34).plan.dropped) == 1
    both = dropped(
        silenced(model, "layers.0.mlp.down"), (ROWS,), unit="branch", count=4, tolerance=1e-9
    )
    assert [d.name for d in both.plan.dropped] == ["layers.0.mlp"]
    kept = [b for b in both.report.branches if b.state == "kept"]
    assert {b.reason for b in kept} == {"above the tolerance"}


@pytest.mark.parametrize(
    ("blocks", "count", "kept"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (12, 8, [0, 4, 7, 11]), (4, 2, [0, 3]), (5, 4, [0])],
)
def test_evenly_spaced_blocks_stay(blocks: int, count: int, kept: list[int]) -> None:
    """Six of twelve are DistilBERT's."""
    model = made(Stack, count=blocks)
    result = dropped(model, (ROWS,), count=count, choice="even")
    gone = {d.name for d in result.plan.dropped}
    assert [i for i in range(blocks) if f"layers.{i}" not in gone] == kept
    layers: Any = result.model.get_submodule("layers")
    assert len(layers) == len(kept)


def test_any_counts_a_block_as_its_branches() -> None:
    model = made(Stack)
    with torch.no_grad():  # a block whose branches cancel: cheaper than either
        layer: Any = model.get_submodule("layers.1")
        layer.mix.weight.zero_()
        layer.mix.bias.fill_(0.5)
        layer.mlp.down.weight.zero_()
        layer.mlp.down.bias.copy_(-torch.tanh(layer.mix.bias))
    result = dropped(model, (ROWS,), unit="any", ratio=0.34, replace="nothing")
    assert [d.name for d in result.plan.dropped] == ["layers.1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs a ratio, a count or a tolerance"),
        ({"ratio": 0.5, "count": 1}, "not both"),
        ({"ratio": 1.0}, r"lies in \[0, 1\)"),
        ({"count": -1}, "count=-1 must be at least 0"),
        ({"count": 1, "unit": "layer"}, "unit is one of block, branch, any"),
        ({"count": 1, "choice": "odd"}, "choice is one of effect, even"),
        ({"tolerance": 1.0, "choice": "even"}, "needs a ratio or a count"),
        ({"count": 1, "replace": "median"}, "replace is one of"),
        ({"count": 1, "samples": 0}, "samples=0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        DropLayers(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0.1}, "a ratio of 0.1 of 3 rounds to none"),
        ({"count": 4}, "more than the 3 that can be dropped"),
        ({"count": 1, "include": "layer.*"}, "pattern 'layer.*' fits no block; there are layers.0"),
        ({"count": 1, "exclude": "*"}, "found no block to drop"),
    ],
)
def test_removing_nothing_is_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        dropped(made(Stack), (ROWS,), **options)


def test_nothing_within_the_tolerance_is_said_and_is_no_plan() -> None:
    with pytest.raises(PlanError, match="nothing to remove"):
        dropped(made(Stack), (ROWS,), tolerance=1e-9)
    steps = [DropLayers(tolerance=1e-9), passes.MagnitudeScore(), passes.PruneChannels(0.5)]
    result = PassManager([*steps, SparseToDense()]).run(capture(made(Stack), (ROWS,)))
    assert result.report.passes[0].summary.startswith("0 of 3 blocks dropped")


def test_it_stands_before_scores() -> None:
    for steps in (
        [passes.MagnitudeScore(), DropLayers(count=1)],
        [SparseToDense(), DropLayers(count=1)],
    ):
        with pytest.raises(PassOrderError, match="DropLayers cannot stand after"):
            PassManager(steps)


def test_include_and_exclude_go_by_name_and_tensor() -> None:
    model = made(Stack)
    one = dropped(model, (ROWS,), unit="branch", count=1, include="layers.2.mlp.up.weight")
    assert [d.name for d in one.plan.dropped] == ["layers.2.mlp"]
    rest = dropped(model, (ROWS,), count=2, exclude="layers.1")
    assert {d.name for d in rest.plan.dropped} == {"layers.0", "layers.2"}


# what takes its place


def test_the_mean_takes_its_place_in_a_bias() -> None:
    """By hand: the mean over all positions of what the branch adds; in the layer before, so that
    the class stays."""
    model, data = made(Stack), batches(4, 6, 8)
    options: dict[str, Any] = {"unit": "branch", "include": "layers.1.mix", "count": 1}
    result = dropped(model, (ROWS,), data, replace="mean", **options)
    added: list[Tensor] = []
    handle = model.get_submodule("layers.1.mix").register_forward_hook(
        lambda _m, _a, y: added.append(torch.tanh(y))
    )
    for x in data:
        outputs(model, x)
    handle.remove()
    mean = torch.cat(added).mean((0, 1))
    constant = result.plan.dropped[0].constant
    assert constant is not None
    assert torch.allclose(constant, mean, atol=1e-6)
    assert type(result.model) is Stack
    bias = model.get_parameter("layers.0.mlp.down.bias")
    assert torch.allclose(result.plan.constants["layers.0.mlp.down.bias"], bias + mean, atol=1e-6)
    nothing = dropped(model, (ROWS,), data, replace="nothing", **options)
    errors = [r.report.passes[0].details["dropped"]["layers.1.mix"] for r in (result, nothing)]
    assert errors[0] < errors[1]


def test_a_mean_that_no_bias_takes_is_added_by_the_graph() -> None:
    model, data = made(Residual), batches(3, 3, 8, 8)
    options: dict[str, Any] = {"unit": "branch", "include": "body.3*", "count": 1}
    result = dropped(model, (PICTURES,), data, replace="mean", **options)
    assert isinstance(result.model, torch.fx.GraphModule)
    assert any("no bias can take the mean" in note for note in result.report.notes)
    assert parameters(result.model) == result.report.after.params
    automatic = dropped(model, (PICTURES,), data, **options)
    assert type(automatic.model) is Residual


def test_padding_does_not_count_in_the_mean() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + torch.tanh(self.mix(x))
            return self.head((x * attention_mask[..., None]).sum(1))

    model = made(Masked)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]])
    x = ROWS.clone()
    x[mask == 0] = 100.0
    steps = [DropLayers(unit="branch", count=1, replace="mean"), SparseToDense()]
    result = PassManager(steps).run(capture(model, (x, mask)), [(x, mask)])
    stem: Any = model.get_submodule("stem")
    mix: Any = model.get_submodule("mix")
    with torch.no_grad():
        expected = torch.tanh(mix(stem(x)))[mask > 0].mean(0)
    assert torch.allclose(result.plan.dropped[0].constant, expected, atol=1e-5)  # type: ignore[arg-type]


def test_the_channel_axis_is_the_one_parameters_share() -> None:
    for model, x, axis in ((made(Residual), PICTURES, 1), (made(Stack), ROWS, 2)):
        graph = capture(model, (x,))
        nodes = {n.name: n for n in graph.program.graph.nodes}
        for branch in find_branches(graph):
            assert channel_axis(graph, nodes[branch.result]) == axis


# what must not pass


def test_a_wrong_drop_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that takes another value than the plan says, and one that loses a constant."""
    real = drop_module.without

    def wrong(program: Any, drops: Any) -> Any:
        smaller = real(program, drops)
        head = next(n for n in reversed(smaller.graph.nodes) if n.op == "call_function")
        stem = next(n for n in smaller.graph.nodes if n.op == "call_function")
        norm = head.args[0]
        norm.update_arg(0, stem)
        return smaller

    monkeypatch.setattr("prunec.compiler.rewrite.depth.without", wrong)
    monkeypatch.setattr("prunec.compiler.verify.blame.without", wrong)
    with pytest.raises(VerificationError, match=r"dropped branches check failed.*'layers\.\d'"):
        dropped(made(Stack), (ROWS,), count=1)


def test_a_constant_that_is_lost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = drop_module._add_constant

    def wrong(graph: Any, tensors: Any, *rest: Any) -> None:
        before = set(tensors)
        real(graph, tensors, *rest)
        for name in set(tensors) - before:
            tensors[name].data.mul_(0.5)

    monkeypatch.setattr(drop_module, "_add_constant", wrong)
    with pytest.raises(VerificationError, match="dropped branches check failed"):
        dropped(made(Stack), (ROWS,), batches(4, 6, 8), count=1, replace="mean")


def test_a_plan_of_another_model_is_refused() -> None:
    result = dropped(made(Stack), (ROWS,), count=1, include="layers.2")
    with pytest.raises(PlanError, match=r"drops 'layers\.2' with .*, which Inline does not have"):
        result.plan.apply(made(Inline))
    with pytest.raises(PlanError, match="which this program does not have"):
        capture_and_drop(made(Residual), result.plan.dropped)


# how it is used


def test_effects_are_there_on_their_own() -> None:
    model = made(Stack)
    graph = capture(model, (ROWS,))
    effects = branch_effects(graph, find_branches(graph), [[ROWS]], replace="auto")
    assert len(effects) == 9
    alone = dropped(model, (ROWS,), [ROWS], unit="branch", count=1, include="layers.0.mlp")
    expected = squared_error(outputs(alone.model, ROWS), outputs(model, ROWS))
    assert effects["layers.0.mlp"].error == pytest.approx(expected, rel=1e-3)


def test_a_recipe_names_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "depth.toml"
    path.write_text(
        '[[pass]]\nuse = "drop-layers"\ncount = 1\n\n[[pass]]\nuse = "sparse-to-dense"\n'
    )
    steps, _ = build_pipeline(read_recipe(path), {"calibration": [ROWS]})
    assert isinstance(steps[0], DropLayers)
    result = PassManager(steps).run(capture(made(Stack), (ROWS,)))
    assert len(result.plan.dropped) == 1
    assert "calibration data" in result.report.passes[0].summary
    assert "1 branches and blocks dropped of 3" in str(result.report)
