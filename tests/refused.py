"""What is refused: a PrunecError of one sentence that names the thing and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import PrunecError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def refused(call: Callable[[], Any], *words: str) -> str:
    """The message of the error that the call ends with, which holds all the words."""
    with pytest.raises(PrunecError) as error:
        call()
    text = str(error.value)
    for word in words:
        assert word in text
    assert_one_sentence(text)
    return text


def assert_one_sentence(text: str) -> None:
    assert text.endswith("."), text
    assert not re.search(r"[^.]\. [A-Z]", text), text
    assert "\n" not in text, text
    assert not re.search(r"\b\w+(Error|Exception)(\(|:)", text), text


class Takes(nn.Module):
    """Two inputs, of which the second may be left out, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, shift: Any = None, flag: bool = False) -> Tensor:
        h = torch.relu(self.one(x))
        return self.two(h if shift is None else h + shift)
