"""Repaired models whole: back ends, files and ONNX agree; digits are read again."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import digits
import pytest
import torch
from compiled import compress, compress_tokens
from repair_cases import data, repaired, seeded
from tiny_models import tiny_bert, tiny_llama
from torch import Tensor, nn

from prunec import compiler

# Back ends.


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_back_ends_files_and_onnx_agree_after_repair(
    build: Callable[[], Any], tmp_path: pathlib.Path
) -> None:
    tokens = [{"input_ids": torch.randint(0, 99, (8, 7))} for _ in range(12)]
    result = compress_tokens(build(), calibration=tokens)
    assert type(result.model) is type(build())
    summary = next(p.summary for p in result.report.passes if p.name == "reconstruct")
    assert ("biases added" in summary) == (build is tiny_llama)
    assert result.verify().passed
    assert result.report.after.params == sum(p.numel() for p in result.model.parameters())
    expected = outputs(result.model, tokens[0])
    torch.testing.assert_close(outputs(result.graph_module, tokens[0]), expected)
    assert result.export_onnx(tmp_path / "model.onnx").max_rel_error < 1e-4
    result.save(tmp_path / "saved")
    for graph in (False, True):
        loaded = compiler.load(tmp_path / "saved", graph=graph)
        torch.testing.assert_close(outputs(loaded, tokens[0]), expected)


def test_biases_are_added_only_where_asked() -> None:
    tokens = [{"input_ids": torch.randint(0, 99, (8, 7))} for _ in range(12)]
    options = {"reconstruct": {"add_bias": False}}
    result = compress_tokens(tiny_llama(), calibration=tokens, options=options)
    assert not any(name.endswith("bias") for name, _ in result.model.named_parameters())
    layers = next(p for p in result.report.passes if p.name == "reconstruct").details["layers"]
    assert layers["model.layers.0.mlp.down_proj.weight"]["note"] == "it has no bias"


def test_a_graph_without_a_class_takes_new_biases_too() -> None:
    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 12), nn.Linear(12, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.first(x)).reshape(-1, 12))

    result = compress(seeded(Baked), data(4, 8)[0], calibration=data(30, 8))
    assert result.model is result.graph_module
    assert result.model.head.bias.any()
    assert next(c for c in result.verify().checks if c.name == "graph module == program").passed


# The whole way.


@pytest.mark.slow
def test_digits_at_a_quarter_of_the_width_are_read_again_without_labels() -> None:
    torch.manual_seed(0)
    model = digits.DigitsNet()
    digits.train(model, epochs=4)
    images, _ = digits.tensors("train")
    raw, result = repaired(model, list(images[:256].split(64)), ratio=0.75, ridge=1e-2)
    assert digits.accuracy(model) > 0.95
    assert digits.accuracy(raw.model) < 0.4
    assert digits.accuracy(result.model) > 0.85
