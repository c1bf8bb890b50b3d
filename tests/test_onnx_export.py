"""ONNX export: every file is proven against its model before it is put in place."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.errors import ExportError
from prunec.compiler.onnx_files import export as onnx_export_module
from prunec.compiler.onnx_files.export import export_onnx
from prunec.compiler.onnx_files.parity import Parity, prove_parity
from prunec.compiler.onnx_files.session import OnnxSession


class Nested(nn.Module):
    """Nested inputs and outputs, a constant flag, an unused input, an input that is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(
        self, x: Tensor, pair: list[Tensor], double: bool = True, *, more: dict[str, Tensor], idle
    ) -> dict[str, Any]:
        y = self.linear(x) + pair[0]
        return {"y": y, "none": None, "pair": (x, pair[1]), "add": y * 2 if double else y}


class OfMapping(nn.Module):
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["a"] * 2 + batch["b"].sum(-1, keepdim=True)


class NaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 - x / 0


class Size(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x + 1, x.shape[0]


def conv() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4))


def run(path, **inputs: Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def test_conv_net_with_dynamic_batch(tmp_path, capfd) -> None:
    model, x, path = conv(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx"
    logging.disable(logging.NOTSET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = export_onnx(model, (x,), {}, path)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
    assert model.training, "the model keeps its mode"
    assert (report.inputs, report.outputs, report.dynamic_batch) == (["input"], ["output"], True)
    assert report.max_rel_error < 1e-5
    assert report.notes == []
    assert report.bytes == path.stat().st_size
    assert json.loads(json.dumps(report.to_json()))["opset"] == report.opset
    many = torch.randn(5, 3, 8, 8)
    expected = model.eval()(many).detach()
    assert torch.allclose(torch.from_numpy(run(path, input=many)[0]), expected, atol=1e-5)
    proto = onnx.load(path)
    assert proto.opset_import[0].version == report.opset
    assert not any(node.metadata_props for node in proto.graph.node), "paths of this machine"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_names_are_arguments_and_paths_and_constants_are_baked_in(tmp_path) -> None:
    model, path = Nested(), tmp_path / "nested.onnx"
    x, pair = torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 5)]
    keywords = {"idle": torch.randn(2), "more": {"a": torch.randn(2)}, "double": False}
    report = export_onnx(model, (x, pair), keywords, path)
    assert report.inputs == ["x", "pair_0", "pair_1", "more_a", "idle"]
    assert report.outputs == ["y", "pair_0_out", "pair_1_out", "add"]
    feeds = {"x": x, "pair_0": pair[0], "pair_1": pair[1], "idle": keywords["idle"]}
    y, first, _, add = run(path, **feeds, more_a=keywords["more"]["a"])
    assert (add == y).all(), "double=False is part of the graph"
    assert (first == x.numpy()).all()


def test_exported_graph_and_fixed_batch(tmp_path) -> None:
    model, x, path = conv().eval(), torch.randn(2, 3, 8, 8), tmp_path / "graph.onnx"
    graph = torch.export.export(model, (x,)).module()
    report = export_onnx(graph, (x,), None, path)
    assert not report.dynamic_batch
    assert report.notes[0].startswith("the batch is fixed at 2: ")
    assert torch.allclose(torch.from_numpy(run(path, input=x)[0]), model(x).detach(), atol=1e-5)


def test_core_aten_takes_over_where_the_exporter_refuses_the_model(tmp_path) -> None:
    # torch.onnx.export takes a last positional dict for keyword arguments.
    batch = {"b": torch.randn(2, 3), "a": torch.randn(2, 3)}
    report = export_onnx(OfMapping(), (batch,), {}, tmp_path / "mapping.onnx")
    assert report.notes[0].startswith("exported by way of core ATen: ")
    assert report.inputs == ["batch_b", "batch_a"]
    assert report.dynamic_batch


@pytest.mark.slow
def test_transformers_model_with_a_constant_and_keywords_in_another_order(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, num_key_value_heads=1))
    ids = torch.randint(0, 50, (2, 5))
    call = {"use_cache": False, "attention_mask": torch.ones_like(ids), "input_ids": ids}
    report = export_onnx(model, (), call, tmp_path / "model.onnx")
    assert report.inputs == ["input_ids", "attention_mask"]
    assert report.outputs == ["logits"]
    assert report.dynamic_batch
    assert report.max_rel_error < 1e-4


class Tokens(nn.Module):
    """Token ids and boxes of one length, another sequence, a flag that goes through **kwargs."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.table, self.fixed = nn.Embedding(9, 4), fixed

    def forward(self, ids: Tensor, boxes: Tensor, other: Tensor, **flags: bool) -> Tensor:
        x = self.table(ids) + boxes.to(torch.float32)
        if self.fixed:
            x = x + torch.ones(7, 1)
        return x.mean(1) + self.table(other).mean(1) * (2 if flags.get("double") else 1)


@pytest.mark.parametrize("fixed", [False, True])
def test_sequences_have_any_length_where_the_model_allows(tmp_path, fixed: bool) -> None:
    ids, other = torch.randint(0, 9, (2, 7)), torch.randint(0, 9, (2, 5))
    call = {"ids": ids, "boxes": torch.ones(2, 7, 4, dtype=torch.long), "other": other}
    report = export_onnx(Tokens(fixed).eval(), (), call | {"double": True}, tmp_path / "m.onnx")
    assert (report.dynamic_batch, report.dynamic_sequence) == (True, not fixed)
    shapes = [shape for _, shape, _ in OnnxSession(tmp_path / "m.onnx").signature()]
    if fixed:
        assert shapes == [("batch", 7), ("batch", 7, 4), ("batch", 5)]
        assert "sequences have the fixed length 7 and 5" in report.notes[0]
    else:
        assert shapes == [("batch", "sequence"), ("batch", "sequence", 4), ("batch", "sequence_2")]
        assert not report.notes


def test_parity_sees_other_weights_nan_and_shapes(tmp_path, monkeypatch) -> None:
    path, model, x = tmp_path / "net.onnx", nn.Linear(3, 4), torch.randn(2, 3)
    export_onnx(model, (x,), {}, path)
    calls = {"the example": ((x,), {}), "batch 3": ((torch.randn(3, 3),), {})}

    def prove(model: nn.Module, tolerance: float = 1e-3) -> Parity:
        return prove_parity(model, calls, path, tolerance=tolerance)

    assert prove(model).max_rel_error < 1e-5
    off = copy.deepcopy(model)
    off.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})
    with pytest.raises(ExportError, match=r"in output 'output': 9.9e-03 of its largest value"):
        prove(off)
    assert prove(off, tolerance=0.1).max_rel_error == pytest.approx(0.0099, 1e-2)
    with pytest.raises(ExportError, match=r"gives shape \(2, 4\) .* the model \(2, 5\)"):
        prove(nn.Linear(3, 5))
    honest = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda *a: [v * torch.nan for v in honest(*a)])
    with pytest.raises(ExportError, match=r"gives NaN .* where the model does not"):
        prove(model)


def test_a_file_that_disagrees_never_replaces_a_good_one(tmp_path, monkeypatch) -> None:
    path, x = tmp_path / "net.onnx", torch.randn(2, 3)
    path.write_bytes(b"good")
    honest = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda *a: [v * 1.01 for v in honest(*a)])
    with pytest.raises(ExportError, match="differs from the model"):
        export_onnx(nn.Linear(3, 4), (x,), {}, path, dynamic_batch=False)
    assert path.read_bytes() == b"good"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_disagreement_at_another_batch_fixes_the_batch(tmp_path, monkeypatch) -> None:
    honest = OnnxSession.run

    def wrong_beyond_two(self, tensors):
        return [v + (len(v) > 2) for v in honest(self, tensors)]

    monkeypatch.setattr(OnnxSession, "run", wrong_beyond_two)
    report = export_onnx(nn.Linear(3, 4), (torch.randn(2, 3),), {}, tmp_path / "net.onnx")
    assert not report.dynamic_batch
    assert "at batch 3" in report.notes[0]


def test_infinities_that_agree_are_no_error(tmp_path) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, -torch.inf)

    report = export_onnx(Masked(), (torch.tensor([[1.0, -1.0], [-2.0, 3.0]]),), {}, tmp_path / "m")
    assert (report.max_abs_error, report.max_rel_error) == (0, 0)


def test_large_weights_lie_beside_the_model(tmp_path, monkeypatch) -> None:
    path, data, x = tmp_path / "net.onnx", tmp_path / "net.onnx.data", torch.randn(2, 64)
    model = nn.Linear(64, 64)
    monkeypatch.setattr(onnx_export_module, "_EXTERNAL_ABOVE", 1000)
    report = export_onnx(model, (x,), {}, path, dynamic_batch=False)
    assert (report.dynamic_batch, report.notes) == (False, [])
    assert data.stat().st_size >= 64 * 64 * 4
    assert report.bytes == path.stat().st_size + data.stat().st_size
    assert torch.allclose(torch.from_numpy(run(path, input=x)[0]), model(x).detach(), atol=1e-5)
    monkeypatch.setattr(onnx_export_module, "_EXTERNAL_ABOVE", 10**9)
    export_onnx(model, (x,), {}, path, dynamic_batch=False)
    assert not data.exists(), "the data of the file that was replaced"


def test_refusals_name_the_remedy(tmp_path) -> None:
    x, path = torch.randn(2, 3), tmp_path / "net.onnx"
    with pytest.raises(ExportError, match="NaN in output 'output': check its weights"):
        export_onnx(NaN(), (x,), {}, path)
    with pytest.raises(ExportError, match="type int, which ONNX cannot hold: return tensors only"):
        export_onnx(Size(), (x,), {}, path)
    with pytest.raises(ExportError, match="do not fit the model's forward"):
        export_onnx(nn.Linear(3, 4), (x, x), {}, path)
    with pytest.raises(ExportError, match="fails on the example inputs"):
        export_onnx(nn.Linear(4, 4), (x,), {}, path)
    with pytest.raises(ExportError, match=r"net\.onnx: create .*missing first"):
        export_onnx(nn.Linear(3, 4), (x,), {}, tmp_path / "missing" / "net.onnx")
    with pytest.raises(ExportError, match="where 9 was asked for: ask for 18"):
        export_onnx(nn.Linear(3, 4), (x,), {}, path, opset=9, dynamic_batch=False)
    assert not list(tmp_path.iterdir())
