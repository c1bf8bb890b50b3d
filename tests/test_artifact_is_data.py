"""Artifacts against someone who fits the checksums: nothing run, nothing opened, nothing huge."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from saved import Saved, change_weights, compress, edit_manifest, fix_checksum
from tiny_models import IDS, IMAGES, SmallCnn, small_cnn, tiny_bert
from torch import nn

from prunec import compiler
from prunec.compiler import Plan
from prunec.compiler.artifact.closed_door import nothing_opened
from prunec.compiler.artifact.fresh_process import try_in_fresh_process
from prunec.compiler.artifact.model_class import checked_config
from prunec.compiler.emit.replay import apply_attributes
from prunec.compiler.errors import ArtifactError, PlanError


@pytest.fixture
def llama_copy(llama: Saved, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(llama.place, tmp_path / "llama"))


def edit(place: pathlib.Path, name: str, change: Callable[[Any], Any]) -> None:
    data = json.loads((place / name).read_text())
    change(data)
    (place / name).write_text(json.dumps(data))
    fix_checksum(place, name)


# Checksums.


def test_an_empty_table_of_checksums_is_refused(own_copy: pathlib.Path) -> None:
    change_weights(own_copy, "head.weight")
    for sums in ({}, None, {"graph.json": "0" * 64}):
        edit_manifest(own_copy, checksums=sums)
        with pytest.raises(ArtifactError, match="compile again"):
            compiler.load(own_copy)


def test_checksums_name_only_files_of_the_artifact(own_copy: pathlib.Path) -> None:
    sums = json.loads((own_copy / "prunec.json").read_text())["checksums"]
    for name in ("../outside", "/etc/passwd", "sub/weights.safetensors", "tokenizer.json"):
        edit_manifest(own_copy, checksums={**sums, name: "0" * 64})
        with pytest.raises(ArtifactError, match="no file of an artifact"):
            compiler.load(own_copy)


def test_a_file_that_is_not_listed_is_not_read(llama_copy: pathlib.Path) -> None:
    sums = json.loads((llama_copy / "prunec.json").read_text())["checksums"]
    del sums["generation_config.json"]
    edit_manifest(llama_copy, checksums=sums)
    (llama_copy / "generation_config.json").write_text("nonsense")
    (llama_copy / "anything.py").write_text("raise SystemExit")
    compiler.load(llama_copy)


# Files.


@pytest.mark.parametrize("name", ["prunec.json", "graph.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "socket"])
def test_what_is_no_regular_file_is_not_opened(
    own_copy: pathlib.Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_copy / name
    path.rename(own_copy.parent / name)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(own_copy.parent / name)
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(own_copy)  # the paths of sockets are short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
    with pytest.raises(ArtifactError, match="no regular file"):
        compiler.load(own_copy)


# Configurations.


@pytest.mark.parametrize(
    "key",
    ["auto_map", "_name_or_path", "trust_remote_code", "attn_implementation", "custom_pipelines"],
)
def test_what_names_code_is_left_out_at_every_depth(key: str) -> None:
    value: Any = {"AutoModel": "evil--code.Model"}
    config = {"a": 1, key: value, "sub": {"b": 2, key: value, "list": [{"c": 3, key: value}]}}
    assert checked_config(config) == {"a": 1, "sub": {"b": 2, "list": [{"c": 3}]}}


@pytest.mark.parametrize(
    "entry",
    [
        {"backbone": "hf-hub:evil/model"},
        {"use_timm_backbone": True},
        {"use_pretrained_backbone": True},
        {"model_type": "timm_wrapper"},
        {"dtype": "load"},
        {"torch_dtype": "__class__"},
        {"vocab_size": 10**12},
        {"__class__": 1},
    ],
)
def test_what_would_be_looked_up_outside_is_refused_at_every_depth(entry: dict[str, Any]) -> None:
    for config in (entry, {"sub": entry}, {"list": [{"sub": entry}]}):
        with pytest.raises(ArtifactError, match=r"config\.json has"):
            checked_config(config)


def test_special_floats_of_a_configuration_are_read() -> None:
    found = checked_config({"limit": [0.0, {"__float__": "Infinity"}]})
    assert found == {"limit": [0.0, float("inf")]}


def test_own_python_of_a_configuration_does_not_run(
    llama_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = llama_copy / "ran"
    (llama_copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: pass\n")
    names = {name: "evil.Model" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    here = str(llama_copy)
    edit(llama_copy, "config.json", lambda c: c.update(auto_map=names, _name_or_path=here))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    compiler.load(llama_copy)
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 10**7}, {"num_hidden_layers": 10**6}, {"intermediate_size": 10**7}],
)
def test_sizes_that_are_not_stored_are_never_made(
    llama_copy: pathlib.Path, change: dict[str, int]
) -> None:
    edit(llama_copy, "config.json", lambda c: c.update(change, layer_types=None))
    with pytest.raises((ArtifactError, PlanError)):
        compiler.load(llama_copy)


def test_nothing_outside_is_opened_while_a_class_is_made(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights"
    path.write_text("secret")
    with nothing_opened():
        for reach in (
            lambda: path.read_text(),
            lambda: (tmp_path / "new").write_text("x"),
            lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
            lambda: os.system("true"),
        ):
            with pytest.raises(ArtifactError):
                reach()
    assert path.read_text() == "secret"


# Plans.


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("first", "__class__.out_channels"),
        ("first", "__class__"),
        ("first", "forward"),
        ("first", "training"),
        ("first", "padding_mode"),
        ("first", "nothing"),
        ("", "first.__init__.x"),
        ("absent", "out_channels"),
    ],
)
def test_a_plan_sets_only_sizes_that_an_instance_has(path: str, name: str) -> None:
    model = small_cnn()
    for old in (None, 16, True):
        with pytest.raises(PlanError):
            apply_attributes(model, {path: {name: [old, 8]}})
    apply_attributes(model, {"first": {"out_channels": [16, 8]}})
    assert model.first.out_channels == 8
    assert not hasattr(nn.Conv2d, "out_channels")


PLAN_FORGERIES: dict[str, dict[str, Any]] = {
    "stub of many values": {"stubs": {"first": "zero/1000000000000"}},
    "stub of no form": {"stubs": {"first": "exec"}},
    "class attribute": {"attributes": {"first": {"__class__.x": [1, 2]}}},
    "flag": {"attributes": {"first": {"training": [1, True]}}},
    "huge attribute": {"attributes": {"first": {"out_channels": [16, 10**12]}}},
    "index out of range": {"slices": {"first.weight": {"0": [0, 99]}}},
    "negative index": {"slices": {"first.weight": {"0": [-1]}}},
    "index twice": {"slices": {"first.weight": {"0": [1, 1]}}},
    "axis that is none": {"slices": {"first.weight": {"9": [1]}}},
    "slices without a shape": {"shapes": {}},
    "dtype of no table": {"constants": {"x": {"dtype": "load", "shape": [1], "values": [1.0]}}},
    "values that do not fill": {
        "constants": {"x": {"dtype": "float32", "shape": [10**9], "values": [1.0]}}
    },
    "names that are none": {"model": 3},
    "back end of no kind": {"backend": "os"},
}


@pytest.mark.parametrize("change", PLAN_FORGERIES.values(), ids=PLAN_FORGERIES.keys())
def test_forged_plans_are_refused(cnn: Saved, change: dict[str, Any]) -> None:
    data = json.loads(cnn.result.plan.to_json())
    with pytest.raises(PlanError, match="damaged"):
        Plan.from_json(json.dumps({**data, **change}))


# What is called an artifact was loaded.


def test_a_model_that_was_cut_before_is_saved_as_what_loads(tmp_path: pathlib.Path) -> None:
    model = compress(tiny_bert(), kwargs={"input_ids": IDS}).model
    result = compress(model, kwargs={"input_ids": IDS})
    loaded: Any = compiler.load(result.save(tmp_path / "again"))
    expected: Any = result.model
    with torch.no_grad():
        found = loaded(input_ids=IDS).logits
        torch.testing.assert_close(found, expected(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_class_that_does_not_come_back_is_told(tmp_path: pathlib.Path) -> None:
    class Stateful(SmallCnn):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

    result = compress(small_cnn(), IMAGES)
    result.state.graph.source.__class__ = Stateful
    place = result.save(tmp_path / "told")
    assert json.loads((place / "prunec.json").read_text())["backend"] == "graph"
    assert any("loads as the graph, not as the class" in note for note in result.report.notes)
    assert torch.equal(compiler.load(place)(IMAGES), result.model(IMAGES))


@pytest.mark.slow
def test_an_artifact_is_tried_by_what_is_on_disk(own_copy: pathlib.Path) -> None:
    try_in_fresh_process(own_copy)
    (own_copy / "graph.json").unlink()
    with pytest.raises(ArtifactError, match=r"does not load in a fresh process: .*graph\.json"):
        try_in_fresh_process(own_copy)


# What is read well and does not fit.


def test_a_model_that_does_not_run_is_an_error_of_load_not_of_the_first_call(
    llama_copy: pathlib.Path,
) -> None:
    edit(llama_copy, "config.json", lambda config: config.update(return_dict=False))
    with pytest.raises(ArtifactError, match="does not run on the inputs it was compiled with"):
        compiler.load(llama_copy)
    assert isinstance(compiler.load(llama_copy, try_run=False), nn.Module)


def test_the_trial_run_leaves_the_model_and_random_numbers_as_they_are(
    llama_copy: pathlib.Path,
) -> None:
    before = torch.random.get_rng_state()
    loaded, plain = compiler.load(llama_copy), compiler.load(llama_copy, try_run=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    for (name, a), (other, b) in zip(
        loaded.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert [*vars(loaded)] == [*vars(plain)]


def test_the_inputs_of_the_trial_are_those_of_the_compile(llama_copy: pathlib.Path) -> None:
    """A forged example, a forged sample, and no sample: drawn like the example."""
    (llama_copy / "samples.safetensors").unlink()
    sums = json.loads((llama_copy / "prunec.json").read_text())["checksums"]
    del sums["samples.safetensors"]
    edit_manifest(llama_copy, checksums=sums)
    compiler.load(llama_copy)
    example = json.loads((llama_copy / "prunec.json").read_text())["example"]
    next(entry for entry in example if isinstance(entry, dict))["range"] = [0.0, 1e6]
    edit_manifest(llama_copy, example=example)
    with pytest.raises(ArtifactError, match="does not run on the inputs"):
        compiler.load(llama_copy)


def test_a_call_that_its_own_forward_would_refuse_is_none(
    own_copy: pathlib.Path, llama_copy: pathlib.Path
) -> None:
    def keyword_only(graph: dict[str, Any]) -> None:
        graph["call"]["parameters"][0][1] = True  # it is called by position

    def another_keyword(graph: dict[str, Any]) -> None:
        graph["call"]["in"]["tuple"][1]["dict"][0][0] = "canary"

    for place, change in ((own_copy, keyword_only), (llama_copy, another_keyword)):
        edit(place, "graph.json", change)
        with pytest.raises(ArtifactError, match=r"arguments that do not agree|by position"):
            compiler.load(place, graph=True)
