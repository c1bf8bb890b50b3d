"""Compile and verify compare an artifact's files on the same inputs; a damaged one fails."""

from __future__ import annotations

import pathlib

import onnx
import pytest
import torch
from saved import edit_manifest
from tiny_models import IMAGES, small_cnn

from prunec import compiler
from prunec.compiler.artifact.check import check_artifact
from prunec.compiler.artifact.files import checksum
from prunec.compiler.errors import ExportError

DARK = [torch.rand(8, *IMAGES.shape[1:]) * 0.05 for _ in range(3)]


@pytest.fixture(scope="module")
def result() -> compiler.Result:
    torch.manual_seed(0)
    target = compiler.Target(params=0.5)
    return compiler.compile(
        small_cnn(), (DARK[0][:2],), target=target, calibration=DARK, measure=False
    )


def test_verify_and_compile_agree_on_every_file(
    result: compiler.Result, tmp_path: pathlib.Path
) -> None:
    place = result.save(tmp_path / "out", onnx=True, int8="static")
    stated = {c.name: c for c in result.report.checks}
    for check in check_artifact(place):
        if check.name in ("ONNX == graph", "int8 == graph (RMS)"):
            assert check.state == stated[check.name].state == "proven"
            assert check.error == pytest.approx(stated[check.name].error, rel=0.1, abs=1e-6)
            assert check.inputs == stated[check.name].inputs == 3


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_weights_that_were_changed_in_a_file_fail_its_row(
    result: compiler.Result, tmp_path: pathlib.Path, name: str
) -> None:
    place = result.save(tmp_path / "out", onnx=True, int8="static")
    model = onnx.load(str(place / name))
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, str(place / name))
    names = ("model.onnx", "model.int8.onnx", "samples.safetensors")
    edit_manifest(place, beside={n: checksum(place / n) for n in names})
    if name == "model.onnx":
        with pytest.raises(ExportError, match=r"differs from the model|gives NaN"):
            check_artifact(place)
    else:
        failed = [c.name for c in check_artifact(place) if not c.passed]
        assert failed == ["int8 == graph (RMS)"]


def test_an_int8_file_beyond_the_limit_is_not_written(
    result: compiler.Result, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunec.compiler.onnx_files import quantize

    monkeypatch.setattr(quantize, "_distance", lambda *_: (0.37, 0.5))
    with pytest.raises(ExportError, match="off by 37% of their root mean square"):
        result.quantize_onnx(tmp_path / "model.int8.onnx")
    assert not (tmp_path / "model.int8.onnx").exists()
