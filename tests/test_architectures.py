"""Architectures of transformers at tiny configurations: found, cut in half everywhere, equal.

A few run by default; `-m architectures` runs all of them (about half an hour on one core).
"""

from __future__ import annotations

import architectures
import coverage
import pytest
from prunec.compiler.inputs.example_inputs import example_inputs

FEW = (
    "bert convnextv2 deberta-v2 falcon gpt2 llama mamba mixtral segformer swin t5 vit whisper"
).split()
