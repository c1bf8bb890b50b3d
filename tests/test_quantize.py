"""int8 files: smaller, close to the model, and nothing written where that fails."""

from __future__ import annotations

import pathlib

import onnx
import pytest
import torch
from compiled import compress_tokens
from saved import fix_checksum
from tiny_models import tiny_bert
from torch import nn

from prunec import compiler, passes
from prunec.compiler.artifact.check import check_artifact
from prunec.compiler.errors import ExportError
from prunec.compiler.onnx_files import quantize
from prunec.compiler.onnx_files.export import export_onnx
from prunec.compiler.onnx_files.quantize import quantize_onnx
from prunec.compiler.onnx_files.session import OnnxSession


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).eval()


def _negate(path: pathlib.Path) -> None:
    """Let a file answer with the opposite sign."""
    file = onnx.load(str(path))
    name = file.graph.output[0].name
    for node in file.graph.node:
        node.output[:] = ["inner" if output == name else output for output in node.output]
    file.graph.node.append(onnx.helper.make_node("Neg", ["inner"], [name]))
    onnx.save(file, str(path))


IMAGES = [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_int8_is_smaller_and_close(tmp_path: pathlib.Path, mode: str) -> None:
    model = convolutions()
    export_onnx(model, (IMAGES[0],), None, tmp_path / "float.onnx")
    calls = [((x,), {}) for x in IMAGES]
    report = quantize_onnx(model, tmp_path / "float.onnx", tmp_path / "int8.onnx", calls, mode=mode)
    assert report.bytes < 0.5 * report.bytes_before
    assert report.bytes == (tmp_path / "int8.onnx").stat().st_size
    assert 0 < report.rms_error < 0.05
    assert report.quantized == (4 if mode == "static" else 2)
    (found,) = OnnxSession(tmp_path / "int8.onnx").run({"input": IMAGES[0]})
    error = (found - model(IMAGES[0])).norm() / model(IMAGES[0]).norm()
    assert 0 < float(error) < 0.05
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


@pytest.mark.parametrize("saturates", [True, False])
def test_weights_have_the_bits_that_this_processor_multiplies_right(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    monkeypatch.setattr(quantize, "products_saturate", lambda: saturates)
    model, file = convolutions(), tmp_path / "float.onnx"
    export_onnx(model, (IMAGES[0],), None, file)
    calls = [((x,), {}) for x in IMAGES]
    report = quantize_onnx(model, file, tmp_path / "int8.onnx", calls, mode="static")
    assert report.weight_bits == (7 if saturates else 8)
    stored = onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
    weights = [
        onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.INT8
    ]
    largest = max(abs(w.astype(int)).max() for w in weights if w.ndim > 1)
    assert largest == (64 if saturates else 127)
    other = quantize_onnx(
        model, file, tmp_path / "other.onnx", calls, mode="static", weight_bits=report.weight_bits
    )
    assert other.rms_error == report.rms_error


def test_batches_of_other_shapes_are_left_out(tmp_path: pathlib.Path) -> None:
    model, file = nn.Sequential(nn.Linear(16, 8)).eval(), tmp_path / "float.onnx"
    export_onnx(model, (torch.randn(4, 16),), None, file)
    calls = [((torch.randn(n, 16),), {}) for n in (4, 9)] + [((torch.randn(4, 3, 16),), {})]
    assert quantize_onnx(model, file, tmp_path / "int8.onnx", calls).batches == 2
    with pytest.raises(ExportError, match="none of the calibration batches"):
        quantize_onnx(model, file, tmp_path / "other.onnx", calls[2:])


@pytest.mark.parametrize(
    ("mode", "calls", "message"),
    [("half", 1, "'dynamic' or 'static'"), ("dynamic", 0, "needs calibration data")],
)
def test_refuses(tmp_path: pathlib.Path, mode: str, calls: int, message: str) -> None:
    model, file = convolutions(), tmp_path / "float.onnx"
    export_onnx(model, (IMAGES[0],), None, file)
    given = [((x,), {}) for x in IMAGES[:calls]]
    with pytest.raises(ExportError, match=message):
        quantize_onnx(model, file, tmp_path / "int8.onnx", given, mode=mode)
    assert not (tmp_path / "int8.onnx").exists()


def test_nothing_to_quantise_is_an_error(tmp_path: pathlib.Path) -> None:
    model, file = nn.Sequential(nn.ReLU()), tmp_path / "float.onnx"
    export_onnx(model, (torch.randn(4, 3),), None, file)
    with pytest.raises(ExportError, match="nothing to quantise"):
        quantize_onnx(model, file, tmp_path / "int8.onnx", [((torch.randn(4, 3),), {})])
    assert [p.name for p in tmp_path.iterdir()] == ["float.onnx"]


def test_a_result_is_pruned_and_quantised_in_one_pipeline(tmp_path: pathlib.Path) -> None:
    graph = compiler.capture(convolutions(), (IMAGES[0],))
    cut = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    result = compiler.PassManager(cut).run(graph, IMAGES)
    place = result.save(tmp_path / "small", onnx=True, int8="static")
    assert result.report.int8 is not None
    assert result.report.int8.batches == 3
    assert result.report.int8.bytes < result.report.int8.bytes_before
    assert (place / "model.int8.onnx").is_file()
    assert (place / "model.onnx").is_file()
    assert "int8 == model" in str(result.report)
    assert result.report.to_json()["int8"]["path"] == "model.int8.onnx"
    checks = {check.name: check for check in check_artifact(place)}
    assert 0 < (checks["int8 == graph (RMS)"].error or 0) < 0.1
    _negate(place / "model.int8.onnx")
    fix_checksum(place, "model.int8.onnx")
    assert not check_artifact(place)[-1].passed


@pytest.mark.slow
def test_transformers_take_dynamic_ranges(tmp_path: pathlib.Path) -> None:
    result = compress_tokens(tiny_bert())
    report = result.quantize_onnx(tmp_path / "int8.onnx", measure=[2])
    assert report.quantized > 4
    assert report.rms_error < 0.2
    assert result.report.latency[-1].runtime == "onnxruntime int8"
