"""Four artifacts to damage: a plain CNN, a graph whose class was lost, a BERT and a Llama, tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import checkout  # noqa: F401
import torch
import transformers
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Target


class PlainCnn(nn.Module):
    """Two convolutions, a batch norm, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        return self.head(self.drop(x.mean((2, 3))))


class Baked(nn.Module):
    """A width written into forward, so that the class cannot be kept; results by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.first(x))).reshape(-1, 12)
        return {"logits": self.head(hidden), "parts": (hidden.sum(1), None)}


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=32,
    )
    return transformers.BertForSequenceClassification(config)


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=99,
    )
    return transformers.LlamaForCausalLM(config)


class Subject(NamedTuple):
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


_IDS = torch.randint(0, 99, (2, 7), generator=_drawn(2))
SUBJECTS = {
    "cnn": Subject(PlainCnn, (torch.randn(2, 3, 8, 8, generator=_drawn(1)),), {}),
    "graph": Subject(Baked, (torch.randn(4, 8, generator=_drawn(3)),), {}),
    "bert": Subject(_bert, (), {"input_ids": _IDS, "attention_mask": torch.ones_like(_IDS)}),
    "llama": Subject(_llama, (), {"input_ids": _IDS}),
}


def build(directory: Path) -> None:
    """Compile every subject to half its width into `directory`/NAME; those there are kept."""
    for name, subject in SUBJECTS.items():
        if not (directory / name / "prunec.json").exists():
            result = compiler.compile(
                subject.model(),
                subject.args,
                kwargs=subject.kwargs,
                target=Target(width=0.5),
                measure=False,
            )
            result.save(directory / name)
