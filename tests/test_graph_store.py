"""Graphs stored as rows of plain data: exact round trips, and names that are only looked up."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunec.compiler import capture
from prunec.compiler.artifact.files import READ, Files, checksum
from prunec.compiler.artifact.graph_store import load_graph_module, store_graph
from prunec.compiler.artifact.manifest import described
from prunec.compiler.artifact.tensor_store import load_tensors, save_tensors
from prunec.compiler.emit.leaf_modules import emit_graph_module, leaf_specs
from prunec.compiler.emit.row_targets import target_of
from prunec.compiler.emit.row_values import is_finite
from prunec.compiler.errors import ArtifactError, PlanError
from prunec.compiler.plan_data import tensor as tensor_of


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
        x = x.masked_fill(x > 9, float("-inf")).clamp(max=float("inf"))
        return {"logits": self.head(x) * scale + torch.tensor(0.5), "x": (x, [x + 1])}


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def emitted(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    program = capture(model.eval(), args, kwargs=kwargs).program
    return emit_graph_module(program, leaf_specs(model, program)), program


def store(module: Any, program: Any, place: Path) -> list[Any]:
    store_graph(module, place)
    return [described(x) for x in program.flat_inputs()]


def read(place: Path, example: list[Any], *args: Any, **options: Any) -> Any:
    sums = {name: checksum(place / name) for name in READ if (place / name).exists()}
    return load_graph_module(Files(place, sums), example, *args, **options).eval()


def round_trip(model: nn.Module, place: Path, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    module, program = emitted(model, *args, **kwargs)
    return module, read(place, store(module, program, place))


def assert_equal(a: Any, b: Any) -> None:
    (flat_a, spec_a), (flat_b, spec_b) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(flat_a, flat_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any], Path]:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("stored")
    module, program = emitted(Tied(), torch.randint(0, 11, (3, 5)), scale=3.0)
    return module, store(module, program, place), place


@pytest.fixture
def forged(stored, tmp_path: Path) -> Callable[..., Any]:
    """Read a copy of the stored graph that a function has changed, checksums fitted."""

    def forge(change: Callable[[dict[str, Any]], Any]) -> Any:
        for file in stored[2].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        data = json.loads((tmp_path / "graph.json").read_text())
        change(data)
        (tmp_path / "graph.json").write_text(json.dumps(data))
        return read(tmp_path, stored[1])

    return forge


def test_round_trip_is_exact_at_any_batch(stored) -> None:
    module, example, place = stored
    loaded = read(place, example)
    for batch in (1, 2, 7):
        ids = torch.randint(0, 11, (batch, 5))
        assert_equal(module(ids, scale=3.0), loaded(ids, scale=3.0))
    assert list(loaded.state_dict()) == list(module.state_dict())
    assert "dropped" not in loaded.state_dict()
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == flags
    assert isinstance(loaded.mix, nn.Linear)


def test_tied_weights_are_stored_once_and_stay_tied(stored) -> None:
    _, example, place = stored
    loaded = read(place, example)
    assert loaded.embed.weight is loaded.head.weight
    with safe_open(place / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == {"embed.weight", "mix.weight", "mix.bias", "kept"}


def test_no_pickle_on_either_path(stored, tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    module, example, place = stored
    for name in ("Unpickler", "Pickler", "load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    read(place, example)
    store_graph(module, tmp_path)
    ids = torch.randint(0, 11, (3, 5))
    assert_equal(read(tmp_path, example)(ids, scale=3.0), module(ids, scale=3.0))


def test_nothing_of_the_machine_is_stored(stored) -> None:
    text = (stored[2] / "graph.json").read_text()
    assert "stack_trace" not in text
    assert str(Path(__file__).parent) not in text
    assert str(Path(torch.__file__).parent) not in text


class OnDevice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[1], device=x.device)


def test_an_artifact_made_on_cuda_loads_on_the_cpu(tmp_path) -> None:
    x = torch.randn(3, 4)
    module, program = emitted(nn.Sequential(nn.Linear(4, 4), OnDevice()), x)
    example = store(module, program, tmp_path)
    text = (tmp_path / "graph.json").read_text()
    assert '{"device":"cpu"}' in text
    (tmp_path / "graph.json").write_text(text.replace('"device":"cpu"', '"device":"cuda:0"'))
    path = tmp_path / "weights.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {k: v.replace('"cpu"', '"cuda:0"') for k, v in file.metadata().items()}
    save_file(tensors, path, metadata=metadata)
    loaded = read(tmp_path, example, "cpu")
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert_equal(loaded(x), module(x))
    if not torch.cuda.is_available():
        assert_equal(read(tmp_path, example)(x), module(x))


def test_memory_format_comes_back(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    module, loaded = round_trip(model, tmp_path, x)
    assert loaded.get_parameter("0.weight").stride() == model[0].weight.stride() == (27, 1, 9, 3)
    assert_equal(loaded(x), module(x))


class Branches(nn.Module):
    """Regions that stay sub-graphs of their own, with one inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = (x @ x.mT).float() * x.shape[0]
        y = y + self.scale(x).sum()
        return torch.cond(y.sum() > 0, lambda a: a.sin() + 1, lambda a: a.cos(), (y,))


def test_sub_graphs_come_back(tmp_path) -> None:
    x = torch.randn(3, 4)
    module, loaded = round_trip(Branches(), tmp_path, x)
    assert '"higher_order.cond"' in (tmp_path / "graph.json").read_text()
    for sign in (1, -1):
        assert_equal(loaded(sign * x), module(sign * x))


def test_transformers_output_class_comes_back(tmp_path) -> None:
    from transformers import BertConfig, BertForPreTraining
    from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForPreTraining(BertConfig(**sizes, vocab_size=50, intermediate_size=32)).eval()
    ids = torch.randint(0, 50, (2, 5))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    module, loaded = round_trip(model, tmp_path, **call)
    result = loaded(**{name: value[[0, 1, 0]] for name, value in call.items()})
    assert type(result) is BertForPreTrainingOutput
    assert_equal(loaded(**call), module(**call))


class ReturnsPair(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x + 1, x.relu())


def test_other_output_classes_are_stored_as_dicts(tmp_path) -> None:
    x = torch.randn(2, 3)
    _, loaded = round_trip(ReturnsPair(), tmp_path, x)
    assert_equal(loaded(x), {"a": x + 1, "b": x.relu()})


ODD_NAMES = ['a-b c"x', "layer 1", "class", "graph", "a\\b'", "x\n y", "träger"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_are_no_python_names_are_kept(name: str, tmp_path) -> None:
    model = nn.Module()
    model.add_module(name, nn.Linear(8, 6))
    model.forward = lambda x: model._modules[name](x).relu()
    x = torch.randn(3, 8)
    module, loaded = round_trip(model, tmp_path, x)
    for own in (module, loaded, pickle.loads(pickle.dumps(loaded))):
        assert_equal(own(x), model.forward(x))
        assert list(own.state_dict()) == [f"{name}.weight", f"{name}.bias"]


def test_a_loaded_graph_is_a_model_like_any_other(stored) -> None:
    import copy

    _, example, place = stored
    loaded, ids = read(place, example), torch.randint(0, 11, (3, 5))
    expected = loaded(ids, scale=3.0)
    for own in (
        copy.deepcopy(loaded),
        pickle.loads(pickle.dumps(loaded)),
        torch.compile(loaded, backend="eager"),
    ):
        assert_equal(own(ids, scale=3.0), expected)
    assert loaded.train().mix.training
    assert loaded.to(torch.float64).mix.weight.dtype == torch.float64


def _row(kind: str, name: str = "") -> Callable[[dict[str, Any]], list[Any]]:
    def find(data: dict[str, Any]) -> list[Any]:
        return next(r for r in data["nodes"] if r[0] == kind and (not name or r[1] == name))

    return find


def _call(name: str, *args: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        row = _row("call")(data)
        row[1:] = [name, list(args) or row[2], row[3] if not args else {"dict": []}]

    return change


def _at(*path: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def value(new: Any) -> Callable[[dict[str, Any]], None]:
        def change(data: dict[str, Any]) -> None:
            inner: Any = data
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = new

        return change

    return value


def _argument(new: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: _row("call")(data)[2].__setitem__(0, new)


SOURCE = 'a, b:__import__("os").getpid()'
FORGERIES = {
    "python function": _call("torch.os.system"),
    "builtin": _call("builtins.eval"),
    "factory of callers": _call("operator.methodcaller"),
    "library loader": _call("torch.ops.load_library"),
    "operator that writes files": _call("aten.save.default"),
    "operator that maps files": _call("aten.from_file.default"),
    "operator of no tensor": _call("aten.manual_seed.default"),
    "class of an operator": _call("aten.__class__.__init__"),
    "foreign operator": _call("evil.run.default"),
    "unknown operator": _call("aten.nothing_of_that_name.default"),
    "higher-order operator": _call("higher_order.with_effects"),
    "source for a parameter": _at("call", "parameters")([["ids", False], [SOURCE, True]]),
    "source for an argument": _at("call", "names", 0)(SOURCE),
    "source for a keyword": _at("call", "in", "tuple", 1, "dict", 0, 0)(SOURCE),
    "keyword of python": _at("call", "names", 0)("lambda"),
    "argument twice": _at("call", "names")(["ids", "ids"]),
    "no names": lambda data: data["call"].pop("names"),
    "default that is code": _at("call", "parameters", 1)(["scale", True, {"node": 0}]),
    "class to import": _at("call", "out")({"output": ["antigravity.Fly", []]}),
    "class that is none of transformers": _at("call", "out")(
        {"output": ["transformers.modeling_outputs.dataclass", []]}
    ),
    "module that transformers has not": _at("call", "out")(
        {"output": ["transformers.models.bert.modeling_evil.Out", []]}
    ),
    "unknown container": _at("call", "out")({"set": [None]}),
    "reference ahead": _argument({"node": 10_000}),
    "reference back": _argument({"node": -1}),
    "foreign object": _argument({"foreign": 0}),
    "dtype of no table": _argument({"dtype": "load"}),
    "device of no table": _argument({"device": "cpu; x"}),
    "text": _argument("__import__('os')"),
    "huge number": _argument(10**30),
    "deep nesting": _argument(json.loads("[" * 500 + "]" * 500)),
    "tensor it does not hold": lambda data: _row("tensor")(data).__setitem__(1, "__class__"),
    "layer it does not hold": lambda data: _row("layer")(data).__setitem__(1, "forward"),
    "layer of another class": _at("layers", "mix", "class")("Module"),
    "option of no layer": _at("layers", "mix", "options")({"__class__": 1}),
    "layer at a private name": lambda data: data["layers"].update({"__x__": data["layers"]["mix"]}),
    "no output": lambda data: data["nodes"].pop(),
    "two outputs": lambda data: data["nodes"].insert(1, data["nodes"][-1]),
    "another input": lambda data: data["nodes"].insert(0, ["input"]),
    "row of no kind": lambda data: data["nodes"].insert(1, ["import", "os"]),
    "value of a terabyte": _call("aten.zeros.default", [10**6, 10**6]),
    "powers of powers": _call("operator.pow", 9, 10**8),
    "call that cannot run": _call("aten.mm.default", {"node": 0}, {"node": 0}),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_graphs_are_refused(change, forged) -> None:
    with pytest.raises(ArtifactError):
        forged(change)


def test_powers_are_not_computed_at_load(forged) -> None:
    def change(data: dict[str, Any]) -> None:
        row = ["call", "operator.pow", [9, 9], {"dict": []}]
        power = ["call", "operator.pow", [9, {"node": 0}], {"dict": []}]
        last = len(data["nodes"]) - 1
        data["nodes"][last:last] = [row, power]
        power[2][1]["node"] = last

    with pytest.raises(ArtifactError, match="power"):
        forged(change)


def test_incomplete_or_damaged_artifacts_are_named(stored, tmp_path) -> None:
    example = stored[1]
    with pytest.raises(ArtifactError, match=r"graph\.json"):
        read(tmp_path, example)
    for file in stored[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors cannot be read"):
        read(tmp_path, example)
    (tmp_path / "graph.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"graph\.json is not JSON"):
        read(tmp_path, example)


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


@pytest.mark.slow
def test_operators_that_transformers_adds_are_found_in_a_fresh_process() -> None:
    name = "transformers.grouped_mm_fallback.default"
    source = f"from prunec.compiler.emit.row_targets import target_of; print(target_of({name!r}))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == name, done.stderr
    with pytest.raises(ArtifactError, match="namespaces="):
        target_of("transformers.grouped_mm_fallback_backward.default")


def test_numbers_that_no_float_holds_are_refused() -> None:
    for value in (10**400, -(10**400), float("inf"), float("nan"), True, "1", None):
        assert not is_finite(value)
    assert is_finite(10**300)
    assert is_finite(-0.5)
    with pytest.raises(PlanError, match="damaged"):
        tensor_of({"dtype": "float32", "shape": [1], "values": [10**400]})
