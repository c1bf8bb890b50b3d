"""compile(), from a model to a result: what is kept, evaluated, recovered and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import compress, compress_tokens, halved, images
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    TwoOutputs,
    parameters,
    small_cnn,
    timed_by_size,
    tiny_llama,
)
from torch import Tensor, nn

from prunec.compiler import Result, Target
from prunec.compiler.errors import (
    PlanError,
    PrunecError,
    QualityError,
    TargetError,
)

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


@pytest.mark.parametrize("given", [None, float("nan"), {"accuracy": 0.9}, "0.9"])
def test_quality_that_is_no_number_is_an_error(given: Any) -> None:
    def judge(model: nn.Module) -> Any:
        return given

    with pytest.raises(QualityError, match=r"judge gave .* for the original model"):
        compress(evaluate=judge)


def test_quality_of_the_result_is_a_number_too() -> None:
    values = iter((0.8, None))
    with pytest.raises(QualityError, match=r"gave NoneType .* for the smaller model"):
        compress(evaluate=lambda _: next(values))


def test_floor_is_a_share() -> None:
    with pytest.raises(PlanError, match="floor=97 is no share"):
        compress(evaluate=lambda _: 1.0, floor=97)


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
    assert "distill was left out: no data was given to train on, or no steps" in report.notes


def test_calibration_data_repairs_before_any_training() -> None:
    report = compress(
        calibration=images(4), train=images(2), options={"distill": {"steps": 1}}
    ).report
    names = [p.name for p in report.passes]
    assert names[-4:] == ["sparse-to-dense", "reconstruct", "recalibrate-batch-norm", "distill"]
    before, after = report.passes[-3].details["output error"]
    assert after < before
    assert "calibration" not in report.passes[-3].options
    assert not any("left out" in note for note in report.notes)


@pytest.mark.parametrize("calibration", [None, []])
def test_without_calibration_data_the_report_says_that_nothing_was_repaired(
    calibration: list[Tensor] | None,
) -> None:
    report = compress(calibration=calibration).report
    assert "reconstruct" not in [p.name for p in report.passes]
    expected = "second-order-score, reconstruct and recalibrate-batch-norm were left out"
    assert sum(note.startswith(expected) for note in report.notes) == 1
    assert report.passes[0].name == "magnitude-score"


def test_training_data_is_calibration_data_too() -> None:
    batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in images(3)]
    result = compress(train=batches, options={"distill": {"steps": 1}})
    names = [p.name for p in result.report.passes]
    assert names[0] == "second-order-score"
    assert "reconstruct" in names
    once = compress(train=iter(batches), options={"distill": {"steps": 1}})
    assert "reconstruct" not in [p.name for p in once.report.passes]


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
    training = {"train": images(2), "calibration": [], "options": {"distill": {"steps": 2}}}
    result = compress(model, **training)
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


def test_a_runtime_and_batch_are_timed_whatever_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    plain = compress(target=Target(width=0.5), measure=True)
    assert {c.runtime for c in plain.report.latency} == {"torch"}
    asked = compress(target=Target(width=0.5, runtime="onnxruntime", batch=4), measure=True)
    assert ("onnxruntime", 4) in [(c.runtime, c.batch) for c in asked.report.latency]
    assert not any("asked for" in note for note in asked.report.notes)


def test_a_runtime_that_fails_is_a_note_where_the_aim_does_not_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(*args: Any, **options: Any) -> Any:
        if options["batch"] == 4:
            raise RuntimeError("no such batch")
        return timed_by_size(*args, **options)

    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed)
    result = compress(target=Target(width=0.5, batch=4), measure=True)
    assert any("not timed in torch at batch 4" in note for note in result.report.notes)
    once = compress(target=Target(width=0.5, batch=1), measure=True)
    assert [c.batch for c in once.report.latency].count(1) == 1
    with pytest.raises(TargetError, match="at least 1, not 0"):
        Target(width=0.5, batch=0)
