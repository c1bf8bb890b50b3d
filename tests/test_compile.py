"""compile(), from a model and a target to a result: what is met, kept, refused and reported."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    SmallCnn,
    TwoOutputs,
    comparison,
    parameters,
    small_cnn,
    tensor_bytes,
    timed_by_size,
    tiny_bert,
    tiny_llama,
)
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Pass, PassResult, Result, Target
from prunec.compiler.errors import (
    MeasureError,
    PlanError,
    PrunecError,
    QualityError,
    TargetError,
    VerificationError,
)
from prunec.compiler.measure.cost import cost


def compress(model: nn.Module | None = None, args: Any = IMAGES, **options: Any) -> Result:
    """compile to half the width, without timings, unless the options say otherwise."""
    options = {"target": Target(width=0.5), "measure": False} | options
    return compiler.compile(model if model is not None else small_cnn(), args, **options)


def compress_tokens(model: nn.Module, **options: Any) -> Result:
    return compress(model, None, kwargs={"input_ids": IDS}, **options)


@functools.cache
def halved() -> Result:
    """The CNN at half its width, in eval mode; shared by tests that only read it."""
    return compress()


@functools.cache
def small_bert(share: float) -> Result:
    """The BERT at a share of its parameters; shared by tests that only read it."""
    return compress_tokens(tiny_bert(), target=Target(params=share))


def images(count: int = 3) -> list[Tensor]:
    return list(torch.randn(count, 2, 3, 8, 8))


@pytest.fixture
def fake_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.passes.allocate_widths.compare_modules", timed_by_size)
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    def write(text: str) -> pathlib.Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


# Targets: met when counted on the result itself.


def test_width_halves_every_channel_dimension() -> None:
    model = halved().model
    assert isinstance(model, SmallCnn)
    assert (model.first.out_channels, model.second.out_channels) == (8, 12)
    assert model.head.in_features == 12


@pytest.mark.parametrize(("build", "share"), [(small_cnn, 0.5), (small_cnn, 0.2), (tiny_bert, 0.4)])
def test_params_target_is_met_by_the_parameters_of_the_result(
    build: Callable[[], nn.Module], share: float
) -> None:
    model = build()
    if build is tiny_bert:
        result = small_bert(share)
    else:
        result = compress(model, target=Target(params=share))
    kept = parameters(result.model) / parameters(model)
    assert share * 0.85 < kept <= share
    assert type(result.model) is type(model)
    assert parameters(result.model) == result.report.after.params
    assert parameters(model) == result.report.before.params


def test_bytes_target_is_met_by_the_tensors_of_the_result() -> None:
    model = small_cnn()
    result = compress(model, target=Target(bytes=0.4))
    assert 0.3 < tensor_bytes(result.model) / tensor_bytes(model) <= 0.4
    assert tensor_bytes(result.model) == result.report.after.bytes
    assert tensor_bytes(model) == result.report.before.bytes


def test_macs_target_is_met_by_the_captured_result() -> None:
    result = compress(target=Target(macs=0.4))
    before = cost(compiler.capture(small_cnn(), (IMAGES,))).macs
    after = cost(compiler.capture(result.model.eval(), (IMAGES,))).macs
    assert 0.3 < after / before <= 0.4
    assert (before, after) == (result.report.before.macs, result.report.after.macs)


def test_share_target_out_of_reach_names_what_is_reachable() -> None:
    with pytest.raises(TargetError, match=r"params=0\.001 cannot be met.*params=0\.0\d"):
        compress(target=Target(params=0.001))


def test_target_that_rounds_to_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        compress(target=Target(width=0.99))


def test_model_without_prunable_dimensions_is_an_error() -> None:
    with pytest.raises(TargetError, match="no dimension can be pruned"):
        compress(nn.Linear(4, 3), torch.randn(2, 4))


def test_norm_coupled_width_is_used_only_when_exact_dimensions_do_not_suffice() -> None:
    mild, harsh = small_bert(0.9), small_bert(0.4)
    assert mild.model.config.hidden_size == 32
    assert not any("norm-coupled ones" in note for note in mild.report.notes)
    assert harsh.model.bert.pooler.dense.in_features < 32
    assert any("norm-coupled ones" in note for note in harsh.report.notes)


@pytest.mark.usefixtures("fake_timing")
@pytest.mark.parametrize("wanted", [1.3, 2.0, 4.0])
def test_speed_target_is_found_within_the_tolerance(wanted: float) -> None:
    model = small_cnn()
    result = compress(model, target=Target(speedup=wanted))
    assert wanted * 0.97 <= parameters(model) / parameters(result.model) <= wanted * 1.15


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_is_found_within_the_tolerance() -> None:
    model = small_cnn()
    result = compress(model, target=Target(latency_ms=5.0))  # the original takes 12
    found = 12 * parameters(result.model) / parameters(model)
    assert 5 / 1.15 <= found <= 5 / 0.97


@pytest.mark.usefixtures("fake_timing")
def test_speed_target_out_of_reach_names_the_best_speed() -> None:
    with pytest.raises(TargetError, match=r"speedup=1000 cannot be met.*speedup=\d") as caught:
        compress(target=Target(speedup=1000))
    best = float(str(caught.value).rstrip(".").rsplit("=", 1)[1])
    assert 10 < best < 1000


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_out_of_reach_names_the_best_latency() -> None:
    with pytest.raises(TargetError, match=r"reaches latency_ms=0\.\d"):
        compress(target=Target(latency_ms=0.001))


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_without_anything_to_round_away_is_an_error() -> None:
    options = {"allocate-widths": {"round_to": 64}}
    with pytest.raises(PrunecError, match=r"cannot be met|changes nothing"):
        compress(target=Target(latency_ms=6.0), options=options)


@pytest.mark.usefixtures("fake_timing")
def test_latency_target_that_the_original_meets_is_an_error() -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        compress(target=Target(latency_ms=20.0))


def test_speed_target_reaches_the_runtime_and_batch_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[Any, Any]] = set()

    def timed(*args: Any, **options: Any) -> Any:
        seen.add((options["runtime"], options["batch"]))
        return timed_by_size(*args, **options)

    monkeypatch.setattr("prunec.passes.allocate_widths.compare_modules", timed)
    compress(target=Target(speedup=2, runtime="compile", batch=5))
    assert seen == {("compile", 5)}


def test_speed_that_falls_short_when_measured_again_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunec.passes.allocate_widths.compare_modules", timed_by_size)
    monkeypatch.setattr("prunec.compiler.result.compare_modules", lambda *_, **__: comparison(1.25))
    result = compress(target=Target(speedup=2), measure=True)
    assert any("asked for speedup=2, measured 1.25x" in n for n in result.report.notes)
    assert {c.ratio for c in result.report.latency} == {1.25}


@pytest.mark.usefixtures("fake_timing")
def test_measuring_covers_batch_1_and_a_throughput_batch() -> None:
    assert [c.batch for c in compress(measure=True).report.latency] == [1, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one aim"),
        ({"width": 0.5, "params": 0.5}, "one aim"),
        ({"width": 0.0}, r"\(0, 1\]"),
        ({"macs": 1.5}, r"\(0, 1\]"),
        ({"speedup": 0.5}, "at least 1"),
        ({"latency_ms": -1.0}, "positive"),
        ({"speedup": 2, "runtime": "tensorrt"}, "runtime is one of"),
    ],
)
def test_target_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Target(**options)


@pytest.mark.parametrize("text", ["2", "speed=2", "width=", "width=half", "params=1.2.3"])
def test_target_text_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="target"):
        Target.parse(text)


def test_target_text_is_read() -> None:
    assert Target.parse(" speedup = 2x", "compile", 8) == Target(
        speedup=2, runtime="compile", batch=8
    )


def test_target_of_another_type_is_refused() -> None:
    with pytest.raises(TargetError, match="target is a Target"):
        compress(target=0.5)


# Evaluation.


def test_evaluate_goes_to_the_report() -> None:
    result = compress(evaluate=lambda model: float(parameters(model)), floor=0.1)
    before, after = result.report.quality["evaluate"]
    assert (before, after) == (4085, parameters(result.model))


@pytest.mark.parametrize("after", [0.7, float("nan")])
def test_quality_below_the_floor_is_an_error(after: float) -> None:
    values = iter((0.8, after))
    with pytest.raises(QualityError, match=r"from 0\.8000 to (0\.7000|nan)"):
        compress(evaluate=lambda _: next(values), floor=0.9)


@pytest.mark.parametrize(("after", "passes"), [(-1.0, True), (-1.05, True), (-1.2, False)])
def test_floor_holds_for_scores_below_zero(after: float, passes: bool) -> None:
    values = iter((-1.0, after))

    def attempt() -> Result:
        return compress(evaluate=lambda _: next(values), floor=0.9)

    if passes:
        assert attempt().report.quality["evaluate"] == (-1.0, after)
    else:
        with pytest.raises(QualityError, match="below the floor"):
            attempt()


def test_models_are_evaluated_in_eval_mode() -> None:
    modes: list[bool] = []

    def evaluate(model: nn.Module) -> float:
        modes.append(any(m.training for m in model.modules()))
        return 1.0

    compress(small_cnn().train(), evaluate=evaluate)
    assert modes == [False, False]


# Recovery.


def test_training_data_recovers_by_distillation() -> None:
    result = compress(train=images(4), options={"distill": {"steps": 4, "learning_rate": 1e-3}})
    assert [p.name for p in result.report.passes][-1] == "distill"
    assert result.report.passes[-1].details["steps"] == 4
    assert not torch.equal(result.model.head.weight, halved().model.head.weight)
    assert result.verify().passed


def test_without_training_data_the_report_says_so() -> None:
    report = halved().report
    assert "distill" not in [p.name for p in report.passes]
    assert "distill was left out: no train data was given" in report.notes


# Recipes.

SCORES = '[[pass]]\nuse = "magnitude-score"\nnorm = 1\n'
REWRITE = '[[pass]]\nuse = "sparse-to-dense"\n'


def test_recipe_file_lists_passes_and_options(recipe: Callable[[str], pathlib.Path]) -> None:
    path = recipe(
        f'{SCORES}\n[[pass]]\nuse = "allocate-widths"\nround-to = 8\n'
        f'[[pass]]\nuse = "prune-channels"\n{REWRITE}'
    )
    result = compress(recipe=path, target=Target(width=0.6))
    assert [p.name for p in result.report.passes] == [
        "magnitude-score",
        "allocate-widths",
        "prune-channels",
        "sparse-to-dense",
    ]
    assert result.report.passes[0].options["norm"] == 1
    assert (result.model.first.out_channels, result.model.second.out_channels) == (8, 16)


def test_options_given_to_compile_win_over_the_recipe(
    recipe: Callable[[str], pathlib.Path],
) -> None:
    path = recipe(f'{SCORES}[[pass]]\nuse = "prune-channels"\nratio = 0.5\n{REWRITE}')
    result = compress(recipe=path, options={"prune-channels": {"ratio": 0.25}})
    assert result.model.first.out_channels == 12


def test_recipe_that_ignores_the_target_says_so(recipe: Callable[[str], pathlib.Path]) -> None:
    path = recipe(f'{SCORES}[[pass]]\nuse = "prune-channels"\nratio = 0.5\n{REWRITE}')
    assert any("takes the target" in note for note in compress(recipe=path).report.notes)
    assert not any("takes the target" in note for note in halved().report.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[pass]]\nuse = "prune-chanels"', "no pass 'prune-chanels'; installed .*prune-channels"),
        ('[[pass]]\nuse = "magnitude-score"\nnrm = 1', "no option 'nrm'; it has norm"),
        ('[[pass]]\nuse = "distill"', "'distill' needs 'train_loader'"),
        ('[[pass]]\nuse = "distill"\nneeds = "labels"', "needs 'labels', which is none of"),
        ("[[pass]]\nnorm = 1", "each with use"),
        ('pass = ["magnitude-score"]', "each with use"),
        ('[pass]\nuse = "magnitude-score"', "each with use"),
        ("", "each with use"),
        ("[[pass]", "is not TOML"),
        (f"{REWRITE}{SCORES}", "nothing to remove"),
    ],
)
def test_recipe_that_is_wrong_is_refused(
    recipe: Callable[[str], pathlib.Path], text: str, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        compress(recipe=recipe(text))


def test_recipe_that_cannot_be_read_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        compress(recipe=tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(PlanError, match="cannot be read"):
        compress(recipe=tmp_path / "latin.toml")


def test_options_for_a_pass_that_the_recipe_does_not_use_are_refused() -> None:
    with pytest.raises(PlanError, match="options for 'prune-filters', which the recipe does not"):
        compress(options={"prune-filters": {"ratio": 0.5}})


@dataclasses.dataclass
class KeepFirst(Pass):
    """Plan to keep the first `count` entries of every channel dimension."""

    count: int = 8

    name: ClassVar[str] = "keep-first"
    provides: ClassVar[tuple[str, ...]] = ("plan",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def run(self, state: Any) -> PassResult:
        removed = 0
        for dimension in state.graph.prunable.values():
            if dimension.kind == "channel":
                removed += state.plan.remove(dimension.name, range(self.count, dimension.size))
        return PassResult(bool(removed), f"{removed} channels")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's package with two entry points, one of which is no pass."""
    module = types.ModuleType("thirdparty")
    module.KeepFirst = KeepFirst  # type: ignore[attr-defined]
    module.helper = len  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "thirdparty", module)
    real = importlib.metadata.entry_points

    def entry_points(**select: Any) -> Any:
        own = [
            importlib.metadata.EntryPoint("keep-first", "thirdparty:KeepFirst", "prunec.passes"),
            importlib.metadata.EntryPoint("no-pass", "thirdparty:helper", "prunec.passes"),
        ]
        return [*real(**select), *(own if select.get("group") == "prunec.passes" else ())]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


@pytest.mark.usefixtures("installed")
def test_third_party_pass_is_found_by_entry_point(recipe: Callable[[str], pathlib.Path]) -> None:
    result = compress(recipe=recipe(f'[[pass]]\nuse = "keep-first"\ncount = 5\n{REWRITE}'))
    assert result.report.passes[0].summary == "30 channels"
    assert torch.equal(result.model.first.weight, small_cnn().first.weight[:5])


@pytest.mark.usefixtures("installed")
def test_entry_point_that_is_no_pass_is_refused(recipe: Callable[[str], pathlib.Path]) -> None:
    with pytest.raises(PlanError, match="'no-pass' is not a Pass"):
        compress(recipe=recipe('[[pass]]\nuse = "no-pass"'))


# What stays as it was.


def test_model_is_not_changed() -> None:
    model = small_cnn()
    model.train()
    model.norm.eval()
    calls: list[int] = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    modes = {name: m.training for name, m in model.named_modules()}
    objects = [id(t) for t in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    compress(model, train=images(2), options={"distill": {"steps": 2}})
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert [id(t) for t in model.parameters()] == objects
    assert all(p.grad is None for p in model.parameters())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    calls.clear()
    model(IMAGES)
    assert calls == [1]


def test_model_keeps_its_mode_when_compile_fails() -> None:
    model = small_cnn().train()
    model.norm.eval()
    with pytest.raises(TargetError):
        compress(model, target=Target(params=0.001))
    assert model.training
    assert not model.norm.training


def test_result_has_the_mode_of_the_model_module_by_module() -> None:
    model = small_cnn().train()
    model.norm.eval()
    small = compress(model).model
    assert small.training
    assert small.drop.training
    assert not small.norm.training
    assert not halved().model.drop.training


def test_dropout_and_batch_norm_of_the_result_train() -> None:
    small = compress(small_cnn().train()).model
    x = torch.randn(16, 3, 8, 8)
    assert not torch.equal(small(x), small(x))
    statistics = small.norm.running_mean.clone()
    small(x + 3)
    assert not torch.equal(small.norm.running_mean, statistics)
    small.eval()
    assert torch.equal(small(x), small(x))


@pytest.mark.parametrize("build", [small_cnn, BakedSize])
def test_backward_reaches_every_parameter(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = IMAGES if build is small_cnn else torch.randn(4, 8)
    small = compress(build().eval(), x).model
    small(x).square().sum().backward()
    grads = {name: p.grad for name, p in small.named_parameters()}
    assert len(grads) == 8 if build is small_cnn else 6
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert all(g.abs().sum() > 0 for name, g in grads.items() if name.startswith("head"))


def test_frozen_parameters_stay_frozen() -> None:
    model = small_cnn()
    model.first.requires_grad_(False)
    result = compress(model, train=images(2), options={"distill": {"steps": 2}})
    flags = {name: p.requires_grad for name, p in result.model.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert torch.equal(result.model.first.weight, compress(model).model.first.weight)


def test_hooks_travel_to_the_result() -> None:
    model, calls = small_cnn(), []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    small = compress(model).model
    calls.clear()
    small(IMAGES)
    assert calls == [1]


def test_tied_weights_stay_tied() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    result = compress_tokens(
        model,
        train=[{"input_ids": IDS}],
        options={"distill": {"steps": 1}},
    )
    assert result.model.lm_head.weight is result.model.model.embed_tokens.weight
    assert result.model.lm_head.weight.shape == (99, 16)
    assert parameters(model) == result.report.before.params
    assert parameters(result.model) == result.report.after.params  # the tied weight counts once


def test_same_seed_gives_the_same_plan() -> None:
    first, second = compress(), compress()
    assert first.plan.to_json() == second.plan.to_json()
    other = compress(options={"magnitude-score": {"norm": 1}})
    assert other.plan.to_json() != first.plan.to_json()


# Inputs, outputs, calibration.


def test_outputs_that_do_not_matter_do_not_block_widths() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(TargetError, match="no dimension can be pruned"):
        compress(TwoOutputs(), x)
    result = compress(TwoOutputs(), x, outputs="logits")
    assert result.model.body.out_features == 8
    assert set(result.model(x)) == {"logits", "features"}
    assert torch.equal(result.graph_module(x), result.model(x)["logits"])


def test_output_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PrunecError, match=r"output 'logit' does not exist.*logits"):
        compress(TwoOutputs(), torch.randn(2, 8), outputs="logit")


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x],
        lambda x: {"x": x},
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_calibration_is_taken_in_each_form(form: Callable[[Tensor], Any]) -> None:
    once = (form(x) for x in images(2))  # an iterator, read once
    report = compress(calibration=once).report
    counts = {c.name: c.inputs for c in report.checks}
    plain = {c.name: c.inputs for c in halved().report.checks}
    assert counts["zero mask"] == plain["zero mask"] + 2


def test_calibration_of_an_unknown_form_is_refused() -> None:
    with pytest.raises(PrunecError, match="must be a tensor"):
        compress(calibration=["text"])


def test_calibration_goes_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    from prunec.compiler import driver

    real = driver.to_device

    def to_device(value: Any, device: Any) -> Any:
        moved.append(value)
        return real(value, device)

    monkeypatch.setattr(driver, "to_device", to_device)
    batches = images(2)
    compress(calibration=batches, device="cpu")
    assert all(any(batch is value for value in moved) for batch in batches)


class FixedBatch(nn.Module):
    """Takes exactly two rows: the batch cannot be left dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[0], x[1]
        if x.shape[0] != 2:
            raise ValueError("two rows")
        return self.head(torch.relu(self.body(torch.stack((first, second)))))


def test_model_with_a_fixed_batch_is_compiled_and_measured_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    result = compress(FixedBatch(), torch.randn(2, 8), measure=True)
    assert result.model.body.out_features == 8
    assert [c.batch for c in result.report.latency] == [None]
    assert result.verify().passed


# Result and report.


def test_report_round_trips_through_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    result = compress(measure=True, train=images(2), options={"distill": {"steps": 2}})
    data = result.report.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["after"]["params"] == parameters(result.model)
    assert data["latency"][0]["ratio"] == pytest.approx(4085 / parameters(result.model))
    assert data["target"] == "width=0.5"
    assert {d["state"] for d in data["dimensions"]} == {"pruned", "blocked"}
    assert [p["name"] for p in data["passes"]][-1] == "distill"


def test_printed_report_states_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    result = compress(measure=True, evaluate=lambda _: 0.875)
    text = str(result.report)
    small = parameters(result.model)
    facts = (
        "SmallCnn",
        "width=0.5",
        "4,085",
        f"{small:,}",
        f"{small / 4085:.1%}",
        f"{4085 / small:.2f}x",
        "0.8750",
        "zero mask",
        "permutation",
        "2 dimensions pruned, 0 kept, 4 blocked; emitted as SmallCnn",
        "no train data was given",
    )
    assert [fact for fact in facts if fact not in text] == []


def test_every_dimension_has_its_state_and_reason() -> None:
    result = compress(options={"allocate-widths": {"exclude": "first*"}})
    rows = {row.name: row for row in result.report.dimensions}
    assert len(rows) == len(compiler.capture(small_cnn(), (IMAGES,)).dimensions)
    states = {name.split(":")[0]: row.state for name, row in rows.items() if row.before > 15}
    assert states == {"first": "kept", "second": "pruned"}
    assert all(row.reason for row in rows.values())
    blocked = [row.reason for row in rows.values() if row.state == "blocked"]
    assert any("output" in reason for reason in blocked)


def test_note_on_entries_that_stay_leaves_out_those_that_were_planned() -> None:
    notes = small_bert(0.4).report.notes
    assert [note for note in notes if "zero entries stay" in note] == []


def test_graph_back_end_is_reported_with_its_reason() -> None:
    result = compress(BakedSize(), torch.randn(4, 8))
    assert result.report.emitted == "a graph module"
    assert result.model is result.graph_module
    assert any("module back end does not hold" in note for note in result.report.notes)


def test_verify_passes_on_new_inputs_also_in_train_mode() -> None:
    result = compress(small_cnn().train())
    verified = result.verify(seed=7)
    assert verified.passed
    assert verified.masked_error is not None
    assert verified.masked_error < 1e-4
    assert verified.module_error is not None
    assert {c.name for c in verified.checks} >= {"zero mask", "permutation", "module == program"}
    assert result.model.drop.training


def test_verify_fails_when_the_module_differs_from_the_graph() -> None:
    result = compress()
    result.model.head.bias = nn.Parameter(result.model.head.bias + 1)
    with pytest.raises(VerificationError, match="the module differs"):
        result.verify()


def test_verify_fails_when_the_original_was_changed_since() -> None:
    model = small_cnn()
    result = compress(model)
    result.plan.dead = {name: [kept[0]] for name, kept in result.plan.kept.items()}
    with pytest.raises(VerificationError):
        result.verify()


def test_result_says_what_it_is() -> None:
    assert repr(halved()).startswith("Result(SmallCnn: 4,085 -> ")


def test_measure_error_of_an_unknown_runtime_names_the_runtimes() -> None:
    with pytest.raises(MeasureError, match="torch, compile, onnxruntime"):
        halved().measure("tensorrt")


def test_result_is_independent_of_the_original() -> None:
    model = small_cnn()
    small = compress(model).model
    expected = small(IMAGES).detach().clone()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(small(IMAGES), expected)
    assert torch.equal(copy.deepcopy(small)(IMAGES), expected)


def test_explain_lists_all_members_when_asked() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    assert "norm.running_var[0]" not in graph.explain()
    assert "+" in graph.explain()
    listed = graph.explain(members=True)
    for name in ("first.weight[0]", "norm.running_var[0]", "second.weight[1]"):
        assert name in listed
