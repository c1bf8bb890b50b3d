"""Architectures of transformers at tiny configurations: captured, cut in half everywhere, equal.

A few run by default; `-m architectures` runs all of them (most of an hour on one core).
"""

from __future__ import annotations

import examination
import pytest
from architecture_names import COMPILED

from prunec.compiler.inputs import synthetic_inputs

FEW = ("bert convnextv2 deberta-v2 falcon gpt2 llama mixtral swin t5 whisper").split()


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_inputs, "TEXT_LENGTH", examination.TEXT_LENGTH)


def passes_every_check(name: str) -> None:
    row = examination.one(name, onnx=False)
    assert "skipped" not in row, row["skipped"]
    assert row["failures"] == []
    assert row["dimensions"]
    assert max(row[k] for k in ("masked eager", "restricted", "permutation") if k in row) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_few_architectures(name: str) -> None:
    passes_every_check(name)


@pytest.mark.architectures
@pytest.mark.parametrize("name", [n for n in COMPILED if n not in FEW])
def test_all_architectures(name: str) -> None:
    passes_every_check(name)


def test_the_table_is_long() -> None:
    assert len(COMPILED) >= 100
    assert set(FEW) <= set(COMPILED)
