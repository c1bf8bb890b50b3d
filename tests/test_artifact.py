"""The artifact: what is written, loaded, checked and refused."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import pickle
import stat
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    SmallCnn,
    TwoOutputs,
    small_cnn,
    tiny_bert,
    tiny_llama,
)
from torch import Tensor, nn

from prunec import compiler, passes
from prunec.compiler import Plan, Result, Target
from prunec.compiler.artifact.check import check_artifact, prove_artifact
from prunec.compiler.artifact.save import checksum
from prunec.compiler.errors import ArtifactError, ExportError, PlanError

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


def compress(model: nn.Module, *args: Any, **options: Any) -> Result:
    target = options.pop("target", Target(width=0.5))
    return compiler.compile(model, args, target=target, measure=False, **options)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A result and the artifact it was saved as; made once, never written to."""

    result: Result
    place: pathlib.Path


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    result = compress(small_cnn(), IMAGES)
    return Saved(result, result.save(tmp_path_factory.mktemp("cnn") / "small"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    result = compress(tiny_llama(), kwargs={"input_ids": IDS})
    return Saved(result, result.save(tmp_path_factory.mktemp("llama") / "small"))


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    torch.manual_seed(0)
    result = compress(BakedSize().eval(), ROWS)
    return Saved(result, result.save(tmp_path_factory.mktemp("baked") / "small"))


@pytest.fixture
def own_copy(cnn: Saved, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the CNN's artifact to damage."""
    place = tmp_path / "copy"
    place.mkdir()
    for path in cnn.place.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def edit_manifest(place: pathlib.Path, **changes: Any) -> None:
    path = place / "prunec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fix_checksum(place: pathlib.Path, name: str) -> None:
    sums = json.loads((place / "prunec.json").read_text())["checksums"]
    edit_manifest(place, checksums=sums | {name: checksum(place / name)})


def change_weights(place: pathlib.Path, name: str) -> None:
    """Rewrite one stored tensor, with its checksum made to fit."""
    from safetensors import safe_open

    path = place / "weights.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, metadata=metadata)
    fix_checksum(place, path.name)


def kept_in(place: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in place.iterdir()}


# Save and load.


def test_transformers_class_loads_by_itself(llama: Saved) -> None:
    loaded = compiler.load(llama.place)
    assert type(loaded) is type(llama.result.model)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, llama.result.model(IDS).logits)
        longer = torch.randint(0, 99, (3, 11))
        assert torch.equal(loaded(longer).logits, llama.result.model(longer).logits)


def test_loaded_llama_generates_the_same_tokens(llama: Saved) -> None:
    loaded = compiler.load(llama.place)
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": True}
    made = loaded.generate(IDS[:1], **options)
    assert made.shape == (1, 15)
    assert torch.equal(made, llama.result.model.generate(IDS[:1], **options))


def test_tied_weights_are_tied_after_loading(tmp_path: pathlib.Path) -> None:
    result = compress(tiny_llama(tie_word_embeddings=True), kwargs={"input_ids": IDS})
    loaded: Any = compiler.load(result.save(tmp_path / "tied"))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, result.model(IDS).logits)


def test_bert_loads_with_unused_tensors_of_the_model(tmp_path: pathlib.Path) -> None:
    model = tiny_bert()
    model.register_buffer("never_used", torch.arange(5.0))
    result = compress(model, kwargs={"input_ids": IDS})
    place = result.save(tmp_path / "bert")
    assert "never_used" in load_file(place / "rest.safetensors")
    loaded = compiler.load(place)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, result.model(IDS).logits)


def test_own_class_loads_into_a_fresh_model_and_leaves_that_alone(cnn: Saved) -> None:
    torch.manual_seed(5)
    fresh = SmallCnn()
    weights = {name: t.clone() for name, t in fresh.state_dict().items()}
    loaded = compiler.load(cnn.place, model=fresh)
    assert isinstance(loaded, SmallCnn)
    assert loaded is not fresh
    assert torch.equal(loaded(IMAGES), cnn.result.model(IMAGES))
    stored = loaded.state_dict()
    assert all(torch.equal(t, stored[n]) for n, t in cnn.result.model.state_dict().items())
    assert all(torch.equal(t, weights[n]) for n, t in fresh.state_dict().items())


def test_own_class_without_a_model_loads_as_the_graph(cnn: Saved) -> None:
    loaded = compiler.load(cnn.place)
    assert not isinstance(loaded, SmallCnn)
    assert torch.equal(loaded(IMAGES), cnn.result.model(IMAGES))


def test_graph_is_loaded_when_asked_for(llama: Saved) -> None:
    loaded = compiler.load(llama.place, graph=True)
    assert type(loaded) is not type(llama.result.model)
    with torch.no_grad():
        found, expected = loaded(input_ids=IDS), llama.result.model(IDS)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_model_with_a_size_in_its_code_is_saved_as_the_graph(baked: Saved) -> None:
    loaded = compiler.load(baked.place)
    assert type(loaded) is not BakedSize
    assert torch.equal(loaded(ROWS), baked.result.model(ROWS))
    assert torch.equal(loaded(ROWS[:1]), baked.result.model(ROWS[:1]))


def test_loaded_graph_trains(baked: Saved) -> None:
    loaded = compiler.load(baked.place).train()
    before = loaded.norm.running_mean.clone()
    loaded(ROWS).square().sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())
    assert not torch.equal(loaded.norm.running_mean, before)


def test_result_in_train_mode_is_saved_as_it_evaluates(tmp_path: pathlib.Path) -> None:
    result = compress(small_cnn().train(), IMAGES)
    place = result.save(tmp_path / "trained")
    assert result.model.training
    assert result.model.drop.training
    expected = result.model.eval()(IMAGES)
    assert torch.equal(compiler.load(place)(IMAGES), expected)
    assert torch.equal(compiler.load(place, model=SmallCnn())(IMAGES), expected)


def test_frozen_parameters_are_frozen_after_loading(tmp_path: pathlib.Path) -> None:
    model = small_cnn()
    model.first.requires_grad_(False)
    place = compress(model, IMAGES).save(tmp_path / "frozen")
    for loaded in (compiler.load(place), compiler.load(place, model=SmallCnn())):
        flags = {name: p.requires_grad for name, p in loaded.named_parameters()}
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()}


def test_half_precision_is_kept(tmp_path: pathlib.Path) -> None:
    result = compress(small_cnn().bfloat16(), IMAGES.bfloat16())
    place = result.save(tmp_path / "half")
    loaded = compiler.load(place, model=SmallCnn())
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded(IMAGES.bfloat16()), result.model(IMAGES.bfloat16()))


def test_nothing_is_pickled_or_unpickled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    result = compress(small_cnn(), IMAGES)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "Unpickler"),
        (pickle, "Pickler"),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    place = result.save(tmp_path / "plain")
    compiler.load(place)
    compiler.load(place, model=SmallCnn())
    assert {c.passed for c in check_artifact(place)} == {True}


def test_files_are_safetensors_and_json_that_everybody_may_read(cnn: Saved) -> None:
    assert {p.suffix for p in cnn.place.iterdir()} == {".safetensors", ".json"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in cnn.place.iterdir()} == {0o644}
    assert stat.S_IMODE(cnn.place.stat().st_mode) == 0o755


def test_report_travels_with_the_sizes_on_disk(cnn: Saved) -> None:
    report = json.loads((cnn.place / "report.json").read_text())
    weights = sum(p.stat().st_size for p in cnn.place.glob("*.safetensors"))
    assert report["disk"] == [report["before"]["bytes"], weights]
    assert report["emitted"] == "SmallCnn"


def test_tokenizer_is_saved_along(tmp_path: pathlib.Path) -> None:
    class Tokenizer:
        def save_pretrained(self, place: pathlib.Path) -> None:
            (pathlib.Path(place) / "tokenizer.json").write_text("{}")

    place = compress(small_cnn(), IMAGES).save(tmp_path / "a", tokenizer=Tokenizer(), image=None)
    assert (place / "tokenizer.json").read_text() == "{}"
    (place / "tokenizer.json").write_text("{ }")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json was altered"):
        compiler.load(place)


# ONNX.


def test_onnx_is_written_beside_and_its_parity_is_reported(tmp_path: pathlib.Path) -> None:
    result = compress(small_cnn(), IMAGES)
    place = result.save(tmp_path / "both", onnx=True)
    assert (place / "model.onnx").stat().st_size > 1000
    report = json.loads((place / "report.json").read_text())
    assert report["onnx"]["path"] == "model.onnx"
    assert report["onnx"]["max_rel_error"] < 1e-4
    assert "ONNX == module" in str(result.report)
    checks = {c.name: c for c in check_artifact(place)}
    assert checks["ONNX == graph"].passed
    (place / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        check_artifact(place)


def test_export_falls_back_to_the_graph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    from prunec.compiler import result as result_module

    result = compress(small_cnn(), IMAGES)
    tried: list[nn.Module] = []

    def export(model: nn.Module, *_: Any, **__: Any) -> str:
        tried.append(model)
        if model is result.model:
            raise ExportError("no")
        return "exported"

    monkeypatch.setattr(result_module, "export_onnx", export)
    assert result.export_onnx(tmp_path / "m.onnx") == "exported"
    assert tried == [result.model, result.graph_module]


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
    edit_manifest(own_copy, format=2)
    with pytest.raises(ArtifactError, match="format 2; this prunec reads 1"):
        compiler.load(own_copy)


@pytest.mark.parametrize("text", ["", "[1]", "3", "{", '{"format": 1}'])
def test_damaged_manifest_is_refused(own_copy: pathlib.Path, text: str) -> None:
    (own_copy / "prunec.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"damaged|format None"):
        compiler.load(own_copy)


def test_directory_that_is_no_artifact_is_refused(tmp_path: pathlib.Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is no prunec artifact"):
            compiler.load(place)


def test_class_outside_transformers_is_never_imported(own_copy: pathlib.Path) -> None:
    (own_copy / "config.json").write_text("{}")
    edit_manifest(own_copy, **{"class": "antigravity.Net"})
    assert torch.is_tensor(compiler.load(own_copy)(IMAGES))


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
    edit_manifest(own_copy, **{"class": name})
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


# Where it is written.


def test_foreign_directory_is_refused_and_untouched(cnn: Saved, tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="exists and is no prunec artifact"):
        cnn.result.save(tmp_path)
    assert kept_in(tmp_path) == {"thesis.txt": b"dear"}
    with pytest.raises(ArtifactError, match="exists and is no prunec artifact"):
        cnn.result.save(tmp_path / "thesis.txt")
    assert kept_in(tmp_path) == {"thesis.txt": b"dear"}


def test_earlier_artifact_and_empty_directory_are_replaced(
    baked: Saved, own_copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (own_copy / "old.txt").write_text("from before")
    (tmp_path / "empty").mkdir()
    for place in (own_copy, tmp_path / "empty"):
        baked.result.save(place)
        assert torch.equal(compiler.load(place)(ROWS), baked.result.model(ROWS))
    assert {p.name for p in tmp_path.iterdir()} == {"copy", "empty"}
    assert not (own_copy / "old.txt").exists()


def test_link_to_an_artifact_is_followed(
    baked: Saved, own_copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    link = tmp_path / "latest"
    link.symlink_to(own_copy)
    baked.result.save(link)
    assert link.is_symlink()
    assert torch.equal(compiler.load(own_copy)(ROWS), baked.result.model(ROWS))
    assert {p.name for p in tmp_path.iterdir()} == {"copy", "latest"}


class Failing:
    def save_pretrained(self, place: pathlib.Path) -> None:
        raise OSError("disk full")


def test_failure_while_saving_leaves_nothing_behind(cnn: Saved, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        cnn.result.save(tmp_path / "new", tokenizer=Failing())
    assert list(tmp_path.iterdir()) == []


def test_failure_while_saving_leaves_the_old_artifact(
    cnn: Saved, own_copy: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept_in(own_copy)
    with pytest.raises(OSError, match="disk full"):
        cnn.result.save(own_copy, tokenizer=Failing())
    assert kept_in(own_copy) == before
    real = pathlib.Path.rename

    def rename(self: pathlib.Path, target: pathlib.Path) -> Any:
        if pathlib.Path(target).name == "copy" and (self / "graph.json").stat().st_ino != inode:
            raise PermissionError("not now")
        return real(self, target)

    inode = (own_copy / "graph.json").stat().st_ino
    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(PermissionError, match="not now"):
        cnn.result.save(own_copy)
    assert kept_in(own_copy) == before
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_masked_model_is_not_saved(tmp_path: pathlib.Path) -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    manager = compiler.PassManager([passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5)])
    with pytest.raises(ArtifactError, match="put SparseToDense into the pipeline"):
        manager.run(graph).save(tmp_path / "masked")
    assert list(tmp_path.iterdir()) == []


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
        ('{"version": 9}', "version 9; this prunec reads version 1"),
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
