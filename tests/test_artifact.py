"""The artifact: what is written, where, and what is loaded from it."""

from __future__ import annotations

import json
import pathlib
import pickle
import stat
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import ROWS, Saved, compress, edit_manifest, kept_in
from tiny_models import (
    IDS,
    IMAGES,
    BakedSize,
    SmallCnn,
    small_cnn,
    tiny_bert,
    tiny_llama,
)
from torch import nn

from prunec import compiler, passes
from prunec.compiler.artifact.check import check_artifact
from prunec.compiler.errors import ArtifactError, ExportError

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


@pytest.mark.slow
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
    files = [p for p in cnn.place.glob("*.safetensors") if p.name != "samples.safetensors"]
    weights = sum(p.stat().st_size for p in files)
    assert report["disk"] == [report["before"]["bytes"], weights]
    assert report["emitted"] == "SmallCnn"


def test_tokenizer_is_saved_along(tmp_path: pathlib.Path) -> None:
    class Tokenizer:
        def save_pretrained(self, place: pathlib.Path) -> None:
            (pathlib.Path(place) / "tokenizer.json").write_text("{}")

    place = compress(small_cnn(), IMAGES).save(tmp_path / "a", tokenizer=Tokenizer(), image=None)
    assert (place / "tokenizer.json").read_text() == "{}"
    (place / "tokenizer.json").write_text("{ }")  # of other tools: `load` does not read it
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


# Where it is written.


def test_foreign_directory_is_refused_and_untouched(cnn: Saved, tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="exists and is no prunec artifact"):
        cnn.result.save(tmp_path)
    assert kept_in(tmp_path) == {"thesis.txt": b"dear"}
    with pytest.raises(ArtifactError, match="exists and is no directory"):
        cnn.result.save(tmp_path / "thesis.txt")
    assert kept_in(tmp_path) == {"thesis.txt": b"dear"}


def test_earlier_artifact_and_empty_directory_are_replaced(
    baked: Saved, own_copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (own_copy / "stale.safetensors").write_text("")
    manifest = json.loads((own_copy / "prunec.json").read_text())
    edit_manifest(own_copy, checksums=manifest["checksums"] | {"stale.safetensors": ""})
    (own_copy / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for place in (own_copy, tmp_path / "empty"):
        baked.result.save(place)
        assert torch.equal(compiler.load(place)(ROWS), baked.result.model(ROWS))
    assert {p.name for p in tmp_path.iterdir()} == {"copy", "empty"}
    assert not (own_copy / "stale.safetensors").exists()
    assert (own_copy / "notes.txt").read_text() == "mine"


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


def test_a_tokenizer_that_cannot_be_saved_leaves_the_artifact(
    cnn: Saved, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArtifactError, match=r"the tokenizer failed \(disk full\)") as caught:
        cnn.result.save(tmp_path / "new", tokenizer=Failing())
    assert caught.value.kept == tmp_path / "new"
    assert torch.equal(compiler.load(tmp_path / "new")(IMAGES), cnn.result.model(IMAGES))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_masked_model_is_not_saved(tmp_path: pathlib.Path) -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    manager = compiler.PassManager([passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5)])
    with pytest.raises(ArtifactError, match="put SparseToDense into the pipeline"):
        manager.run(graph).save(tmp_path / "masked")
    assert list(tmp_path.iterdir()) == []


def test_what_a_sweep_wrote_stays_beside_the_artifact(baked: Saved, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    for _ in range(2):  # the second time it lies in an artifact
        baked.result.save(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == "{}"
    assert torch.equal(compiler.load(tmp_path)(ROWS), baked.result.model(ROWS))
