"""Artifacts that are damaged, checked and proven; plans that travel."""

from __future__ import annotations

import io
import pathlib

import pytest
import torch
from saved import ROWS, Saved, change_weights, compress, edit_manifest, fix_checksum
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    SmallCnn,
    TwoOutputs,
    small_cnn,
    tiny_bert,
)
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Plan, Target
from prunec.compiler.artifact.check import check_artifact, prove_artifact
from prunec.compiler.errors import ArtifactError, PlanError

# Damage.


def test_altered_file_is_named(own_copy: pathlib.Path) -> None:
    path = own_copy / "plan.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ArtifactError, match=r"plan\.json was altered"):
        compiler.load(own_copy, model=SmallCnn())


def test_missing_file_is_named(own_copy: pathlib.Path) -> None:
    (own_copy / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"incomplete: weights\.safetensors is missing"):
        compiler.load(own_copy)


def test_other_format_version_is_refused(own_copy: pathlib.Path) -> None:
    for version in (1, 3):
        edit_manifest(own_copy, format=version)
        said = f"format {version}; this prunec reads 2: compile the model again"
        with pytest.raises(ArtifactError, match=said):
            compiler.load(own_copy)


@pytest.mark.parametrize("text", ["", "[1]", "3", "{", '{"format": 1}'])
def test_damaged_manifest_is_refused(own_copy: pathlib.Path, text: str) -> None:
    (own_copy / "prunec.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"damaged|format None"):
        compiler.load(own_copy)


@pytest.mark.parametrize("shapes", [0, 2, 3000])
def test_an_example_of_another_number_of_inputs_is_refused(
    own_copy: pathlib.Path, shapes: int
) -> None:
    entry = {"shape": list(IMAGES.shape), "dtype": "float32", "range": [0.0, 1.0]}
    edit_manifest(own_copy, example=[entry] * shapes)
    with pytest.raises(ArtifactError, match=f"describes {shapes} inputs and the graph takes 1"):
        check_artifact(own_copy)


@pytest.mark.parametrize("ends", [[6.0, 1.0], [0.0, 1e30], [-1e30, 0.0]])
def test_a_range_that_its_dtype_does_not_hold_is_refused(
    own_copy: pathlib.Path, ends: list[float]
) -> None:
    edit_manifest(own_copy, example=[{"shape": [2], "dtype": "int64", "range": ends}])
    with pytest.raises(ArtifactError, match="no known form"):
        check_artifact(own_copy)


def test_directory_that_is_no_artifact_is_refused(tmp_path: pathlib.Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is no prunec artifact"):
            compiler.load(place)


def test_class_outside_transformers_is_never_imported(own_copy: pathlib.Path) -> None:
    (own_copy / "config.json").write_text("{}")
    fix_checksum(own_copy, "config.json")
    edit_manifest(own_copy, **{"class": "antigravity.Net"})
    assert torch.is_tensor(compiler.load(own_copy)(IMAGES))
    edit_manifest(own_copy, builds=True)
    with pytest.raises(ArtifactError, match="has no model class"):
        compiler.load(own_copy)


@pytest.mark.parametrize(
    "name",
    [
        "transformers.nowhere.Model",
        "transformers.models.bert.configuration_bert.BertConfig",
        "transformers.models.bert.modeling_bert.Nothing",
    ],
)
def test_class_that_transformers_does_not_have_is_refused(
    own_copy: pathlib.Path, name: str
) -> None:
    (own_copy / "config.json").write_text("{}")
    fix_checksum(own_copy, "config.json")
    edit_manifest(own_copy, builds=True, **{"class": name})
    with pytest.raises(ArtifactError, match="install the version"):
        compiler.load(own_copy)


def test_fresh_model_of_other_shapes_is_refused(cnn: Saved) -> None:
    model = SmallCnn()
    model.first = nn.Conv2d(3, 20, 3)
    with pytest.raises(PlanError, match=r"expects 'first\.weight' of shape \[16, 3, 3, 3\]"):
        compiler.load(cnn.place, model=model)
    model = SmallCnn()
    model.head = nn.Linear(24, 7)
    with pytest.raises((PlanError, ArtifactError), match="original shapes"):
        compiler.load(cnn.place, model=model)
    with pytest.raises(PlanError, match="does not have"):
        compiler.load(cnn.place, model=TwoOutputs())


def test_fresh_model_with_a_tensor_that_is_not_stored_is_refused(cnn: Saved) -> None:
    model = SmallCnn()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"no tensor 'extra\.weight'"):
        compiler.load(cnn.place, model=model)


# Checks.


def test_artifact_checks_out_without_the_original(cnn: Saved, llama: Saved, baked: Saved) -> None:
    names: dict[str, list[str]] = {}
    for saved in (cnn, llama, baked):
        checks = check_artifact(saved.place)
        assert all(c.passed for c in checks)
        names[saved.result.report.model] = [c.name for c in checks if not c.skipped]
    assert names == {
        "SmallCnn": ["checksums"],
        "LlamaForCausalLM": ["checksums", "module == graph"],
        "BakedSize": ["checksums"],
    }


def test_artifact_of_some_outputs_checks_out(tmp_path: pathlib.Path) -> None:
    model = tiny_bert(output_hidden_states=True)
    call = {"kwargs": {"input_ids": IDS}, "outputs": "logits", "target": Target(params=0.5)}
    place = compress(model, **call).save(tmp_path / "some")
    assert [c.name for c in check_artifact(place) if c.passed] == ["checksums", "module == graph"]
    checks = prove_artifact(place, model, (), {"input_ids": IDS})
    assert all(c.passed for c in checks)


def test_artifact_is_proved_on_the_original(cnn: Saved, baked: Saved) -> None:
    torch.manual_seed(0)
    for saved, model, x in ((cnn, small_cnn(), IMAGES), (baked, BakedSize().eval(), ROWS)):
        model.load_state_dict(saved.result.source.state_dict())
        checks = {c.name: c for c in prove_artifact(saved.place, model, (x,), {})}
        assert checks.keys() >= {"zero mask", "permutation", "stored weights == cut weights"}
        assert all(c.passed and not c.skipped for c in checks.values())


def test_proof_fails_on_changed_weights(own_copy: pathlib.Path) -> None:
    change_weights(own_copy, "head.weight")
    checks = {c.name: c for c in prove_artifact(own_copy, small_cnn(), (IMAGES,), {})}
    assert not checks["stored weights == cut weights"].passed
    assert checks["zero mask"].passed


def test_proof_fails_on_another_original(cnn: Saved) -> None:
    other = small_cnn()
    with torch.no_grad():
        other.second.weight.neg_()
    checks = {c.name: c for c in prove_artifact(cnn.place, other, (IMAGES,), {})}
    assert not checks["stored weights == cut weights"].passed
    torch.manual_seed(0)
    with pytest.raises(PlanError, match="no prunable dimension"):
        prove_artifact(cnn.place, BakedSize().eval(), (ROWS,), {})


def test_proof_says_that_trained_weights_are_not_compared(tmp_path: pathlib.Path) -> None:
    result = compress(
        small_cnn(), IMAGES, train=[IMAGES], options={"distill": {"steps": 1, "progress": False}}
    )
    place = result.save(tmp_path / "trained")
    checks = {c.name: c for c in prove_artifact(place, small_cnn(), (IMAGES,), {})}
    assert checks["stored weights"].skipped == "trained since the cut"
    assert all(c.passed for c in checks.values())


# Plans.


def test_plan_applies_to_a_fresh_model_of_the_same_class(cnn: Saved) -> None:
    plan = Plan.from_json(cnn.result.plan.to_json())
    fresh = small_cnn()
    small = plan.apply(fresh)
    assert isinstance(small, SmallCnn)
    assert torch.equal(small(IMAGES), cnn.result.model(IMAGES))
    assert fresh.first.out_channels == 16


def test_plan_of_a_graph_applies_to_a_fresh_model(baked: Saved) -> None:
    plan = Plan.from_json(baked.result.plan.to_json())
    torch.manual_seed(0)
    fresh = BakedSize().eval()
    with pytest.raises(PlanError, match="give example inputs"):
        plan.apply(fresh)
    small = plan.apply(fresh, (ROWS,))
    assert torch.equal(small(ROWS), baked.result.model(ROWS))
    assert fresh.first.out_features == 12


class BakedOutputs(TwoOutputs):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.body(x)).reshape(-1, 16)
        return {"logits": self.head(features), "features": features}


def test_plan_of_some_outputs_applies_to_a_fresh_model() -> None:
    torch.manual_seed(0)
    model = BakedOutputs().eval()
    result = compress(model, ROWS, outputs="logits")
    assert result.plan.backend == "graph"
    plan = Plan.from_json(result.plan.to_json())
    assert plan.outputs == ["logits"]
    assert torch.equal(plan.apply(model, (ROWS,))(ROWS), result.model(ROWS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan"),
        ("[]", "not a plan"),
        ("{}", "not a plan"),
        ('{"version": 9}', "version 9; this prunec reads version 2"),
        ('{"version": 1}', "damaged"),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_plan_survives_json(cnn: Saved) -> None:
    text = cnn.result.plan.to_json()
    assert Plan.from_json(text).to_json() == text
    assert io.StringIO(text).read().startswith("{")
