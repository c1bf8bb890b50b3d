"""Artifacts across architectures: the class comes back from its configuration, without `model=`."""

from __future__ import annotations

import json
import pathlib

import architectures
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from prunec import compiler
from prunec.compiler import Target
from prunec.compiler.inputs.example_inputs import example_inputs

DEFAULT = ("gpt2", "swin")
SLOW = (
    "bert llama t5 vit whisper mixtral clip wav2vec2 deberta-v2 bart mamba dinov2 segformer"
).split()


@pytest.mark.parametrize(
    "name", [*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_class_of_transformers_loads_from_its_artifact(
    name: str, tmp_path: pathlib.Path
) -> None:
    model = next(iter(architectures.tiny_models(name)))
    args, kwargs = example_inputs(model)
    result = compiler.compile(model, args, kwargs=kwargs, target=Target(width=0.5), measure=False)
    assert result.plan.backend == "module", result.report.notes
    place = result.save(tmp_path / "artifact")
    assert json.loads((place / "prunec.json").read_text())["backend"] == "module", (
        result.report.notes
    )
    loaded = compiler.load(place)
    assert type(loaded) is type(model)
    assert all(not t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        found = pytree.tree_leaves(dict(loaded(*args, **kwargs)))
        expected = pytree.tree_leaves(dict(result.model(*args, **kwargs)))
    tensors = [(a, b) for a, b in zip(found, expected, strict=True) if isinstance(b, Tensor)]
    assert tensors
    for a, b in tensors:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
