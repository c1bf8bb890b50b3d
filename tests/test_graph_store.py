"""Stored programs: exact round trips, nothing executed from the artifact."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from prunec.compiler.artifact.graph_store import load_program, store_program
from prunec.compiler.artifact.tensor_store import load_tensors, save_tensors
from prunec.compiler.errors import ArtifactError

BATCH = Dim("batch", min=1, max=64)


class Tied(nn.Module):
    """Tied weights, a persistent and a non-persistent buffer, a lifted constant, nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.embed.weight.requires_grad_(False)
        self.mix = nn.Linear(8, 8)
        self.register_buffer("kept", torch.randn(8))
        self.register_buffer("dropped", torch.randn(8), persistent=False)

    def forward(self, ids: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        x = self.mix(self.embed(ids) + self.kept * self.dropped)
        return {"logits": self.head(x) * scale + torch.tensor(0.5), "none": None, "x": (x, [x + 1])}


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class ReturnsPair(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x, x + 1)


def program() -> ExportedProgram:
    shapes = {"ids": {0: BATCH}, "scale": None}
    call = {"scale": 3.0}
    return export(Tied().eval(), (torch.ones(2, 5).long(),), call, dynamic_shapes=shapes)


def assert_equal(a: Any, b: Any) -> None:
    (flat_a, spec_a), (flat_b, spec_b) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(flat_a, flat_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedProgram, Path]:
    torch.manual_seed(0)
    original, directory = program(), tmp_path_factory.mktemp("stored")
    store_program(original, directory)
    return original, directory


@pytest.fixture
def forged(stored: tuple[ExportedProgram, Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of the artifact with its graph.json changed by a function."""

    def forge(change: Callable[[dict[str, Any]], None]) -> Path:
        for file in stored[1].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        graph = json.loads((tmp_path / "graph.json").read_text())
        change(graph)
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        return tmp_path

    return forge


def test_round_trip_is_exact_at_any_batch(stored) -> None:
    original, directory = stored
    loaded = load_program(directory)
    before, after = original.module(), loaded.module()
    for batch in (1, 2, 7):
        ids = torch.randint(0, 11, (batch, 5))
        assert_equal(before(ids, scale=3.0), after(ids, scale=3.0))
    assert list(loaded.state_dict) == list(original.state_dict)
    for name, value in original.state_dict.items():
        assert type(loaded.state_dict[name]) is type(value)
        assert loaded.state_dict[name].requires_grad == value.requires_grad
    assert str(loaded.range_constraints) == str(original.range_constraints)
    assert loaded.graph_signature.non_persistent_buffers == ("dropped",)
    assert torch.equal(loaded.constants["dropped"], original.constants["dropped"])


def test_tied_weights_are_stored_once_and_stay_tied(stored) -> None:
    loaded = load_program(stored[1])
    assert loaded.state_dict["embed.weight"] is loaded.state_dict["head.weight"]
    module = loaded.module()
    assert module.embed.weight is module.head.weight
    with safe_open(stored[1] / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == {"embed.weight", "mix.weight", "mix.bias", "kept"}


def test_a_loaded_module_checks_the_shapes_it_is_called_with(stored) -> None:
    module = load_program(stored[1]).module()
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.zeros(2, 6).long(), scale=3.0)


def test_no_pickle_on_either_path(stored, tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    original, directory = stored
    for name in ("Unpickler", "Pickler", "load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    ids = torch.randint(0, 11, (3, 5))
    load_program(directory)
    store_program(original, tmp_path)
    assert_equal(load_program(tmp_path).module()(ids, scale=3.0), original.module()(ids, scale=3.0))
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "constants.safetensors", "graph.json", "weights.safetensors"
    ]  # fmt: skip


def test_nothing_of_the_machine_is_stored(stored) -> None:
    text = (stored[1] / "graph.json").read_text()
    assert "stack_trace" not in text
    assert str(Path(__file__).parent) not in text
    assert str(Path(torch.__file__).parent) not in text


def test_an_artifact_made_on_cuda_loads_on_the_cpu(stored, tmp_path) -> None:
    original, directory = stored
    cuda = {"type": "cuda", "index": 0}
    graph = json.loads((directory / "graph.json").read_text().replace(
        '{"type": "cpu", "index": null}', json.dumps(cuda)
    ))  # fmt: skip
    values = graph["graph_module"]["graph"]["tensor_values"]
    assert all(value["device"] == cuda for value in values.values())
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    for name in ("weights.safetensors", "constants.safetensors"):
        with safe_open(directory / name, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = {k: v.replace('"cpu"', '"cuda:0"') for k, v in file.metadata().items()}
        assert "cuda:0" in metadata["prunec"]
        save_file(tensors, tmp_path / name, metadata=metadata)
    loaded = load_program(tmp_path, "cpu")
    assert {t.device.type for t in loaded.state_dict.values()} == {"cpu"}
    ids = torch.randint(0, 11, (3, 5))
    assert_equal(loaded.module()(ids, scale=3.0), original.module()(ids, scale=3.0))
    if not torch.cuda.is_available():
        assert_equal(
            load_program(tmp_path).module()(ids, scale=3.0), loaded.module()(ids, scale=3.0)
        )


def test_memory_format_comes_back(tmp_path) -> None:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    original = export(model, (x,))
    store_program(original, tmp_path)
    loaded = load_program(tmp_path)
    assert loaded.state_dict["weight"].stride() == model.weight.stride() == (27, 1, 9, 3)
    assert_equal(loaded.module()(x), original.module()(x))


def test_autocast_and_no_grad_regions_come_back(tmp_path) -> None:
    class Regions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return (y @ y.mT).float() * x.shape[0]

    original = export(Regions(), (torch.randn(3, 4),), dynamic_shapes={"x": {0: BATCH}})
    store_program(original, tmp_path)
    x = torch.randn(5, 4)
    assert_equal(load_program(tmp_path).module()(x), original.module()(x))


def test_transformers_output_class_comes_back(tmp_path) -> None:
    from transformers import BertConfig, BertForMaskedLM
    from transformers.modeling_outputs import MaskedLMOutput

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(**sizes, vocab_size=50, intermediate_size=32)).eval()
    ids = torch.randint(0, 50, (2, 5))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    original = export(model, (), call, dynamic_shapes={name: {0: BATCH} for name in call})
    store_program(original, tmp_path)
    loaded = load_program(tmp_path)
    tied = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert loaded.state_dict[tied[0]] is loaded.state_dict[tied[1]]
    three = {name: value[[0, 1, 0]] for name, value in call.items()}
    result = loaded.module()(**three)
    assert type(result) is MaskedLMOutput
    assert_equal(result, original.module()(**three))


def test_other_classes_are_refused_when_stored(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="return tensors in tuples, lists or dicts"):
        store_program(export(ReturnsPair(), (torch.randn(2, 3),)), tmp_path)


def _node(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["graph_module"]["graph"]["nodes"][0]


def _call(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["graph_module"]["module_call_graph"][0]["signature"]


def _set(path: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any):
    return lambda graph: path(graph).__setitem__(key, value)


def _rename_everywhere(graph: dict[str, Any]) -> None:
    text = json.dumps(graph).replace('"embedding"', '"x = print(1); y"')
    graph.update(json.loads(text))


def _size(graph: dict[str, Any]) -> dict[str, Any]:
    sizes = graph["graph_module"]["graph"]["tensor_values"]["ids"]["sizes"]
    return sizes[0]["as_expr"]


def _tree(kind: str | None, context: Any, children: int = 0) -> str:
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": kind, "context": json.dumps(context), "children_spec": [leaf] * children}
    return json.dumps([1, spec])


ENUM = {"__enum__": True, "fqn": "antigravity:x", "name": "y"}
FORGERIES = {
    "python function": _set(_node, "target", "torch.os.system"),
    "builtin": _set(_node, "target", "_operator.methodcaller"),
    "library loader": _set(_node, "target", "torch.ops.load_library"),
    "operator that writes files": _set(_node, "target", "torch.ops.aten.save.default"),
    "operator that maps files": _set(_node, "target", "torch.ops.aten.from_file.default"),
    "foreign operator": _set(_node, "target", "torch.ops.evil.run.default"),
    "source in a node's name": _rename_everywhere,
    "source in a size": _set(_size, "expr_str", "__import__('os').getpid()"),
    "source in a symbol": _set(_size, "expr_str", "Add('__import__(\"os\").getpid()', 1)"),
    "attribute in a size": _set(_size, "expr_str", "Symbol('s0').__class__"),
    "class to import": _set(_call, "out_spec", _tree("antigravity.Fly", None)),
    "module of its own in transformers' clothes": _set(
        _call, "out_spec", _tree("transformers_modules.evil.Out", [])
    ),
    "factory to import": _set(_call, "out_spec", _tree("collections.defaultdict", {})),
    "enum to import": _set(_call, "out_spec", _tree("builtins.dict", [ENUM], 1)),
    "quote in an argument": _set(_call, "forward_arg_names", ["ids'", "scale"]),
    "quote in a key": _set(_call, "in_spec", _tree("builtins.dict", ["a'b"], 1)),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_graphs_are_refused(change, forged, monkeypatch) -> None:
    import importlib

    def refuse(name: str, *_: object) -> None:
        raise AssertionError(f"{name} was imported")

    directory = forged(change)
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ArtifactError, match=r"not stored|must not be used|if you trust|are stored"):
        load_program(directory)


def test_guards_of_an_artifact_are_not_run(forged) -> None:
    marker: list[int] = []
    torch.__prunec_marker__ = marker
    source = "__import__('torch').__prunec_marker__.append(1) or True"
    loaded = load_program(forged(lambda graph: graph.update(guards_code=[source])))
    loaded.module()(torch.zeros(2, 5).long(), scale=3.0)
    del torch.__prunec_marker__
    assert marker == []


def test_incomplete_or_damaged_artifacts_are_named(stored, forged, tmp_path_factory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ArtifactError, match=r"no graph\.json"):
        load_program(empty)
    directory = forged(lambda graph: graph["schema_version"].update(major=99))
    with pytest.raises(ArtifactError, match="cannot be rebuilt by torch"):
        load_program(directory)
    (directory / "graph.json").write_bytes((stored[1] / "graph.json").read_bytes())
    (directory / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors cannot be read"):
        load_program(directory)
    (directory / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no weights\.safetensors"):
        load_program(directory)


def test_tensors_that_are_not_plain_are_refused(tmp_path) -> None:
    for tensor in (torch.eye(2).to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(ArtifactError, match="x is no plain dense tensor"):
            save_tensors({"x": tensor}, tmp_path / "t.safetensors")


def test_views_of_one_storage_are_kept_apart(tmp_path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "row": whole[0], "turned": whole.T, "strided": whole[:, ::2],
               "again": whole, "scalar": torch.tensor(2), "none": torch.empty(0, 3)}  # fmt: skip
    save_tensors(tensors, tmp_path / "t.safetensors")
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert loaded[name].dtype == tensor.dtype
    assert loaded["again"] is loaded["whole"]
    assert loaded["turned"].stride() == (1, 4)
