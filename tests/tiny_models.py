"""Tiny models for whole compiles, and a stand-in for timing that depends on sizes only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import transformers
from torch import Tensor, fx, nn

from prunec.compiler.cost_model.stepping import Stepper
from prunec.compiler.measure.timing import Comparison, Timing

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 99, (2, 7), generator=torch.Generator().manual_seed(2))


class SmallCnn(nn.Module):
    """Two convolutions, a normalisation, dropout and a classifier."""

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


class BakedSize(nn.Module):
    """A size written as a number into forward: no attribute can be set, so only the graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x))).reshape(-1, 12))


class TwoOutputs(nn.Module):
    """Logits, and the features that block the width when they matter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.body(x))
        return {"logits": self.head(features), "features": features}


def small_cnn() -> SmallCnn:
    torch.manual_seed(0)
    return SmallCnn().eval()


def tiny_bert(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
        max_position_embeddings=32,
        **options,
    )
    return transformers.BertForSequenceClassification(config).eval()


def tiny_llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **options})).eval()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tensor_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def comparison(ratio: float, runtime: str = "torch", batch: int | None = None) -> Comparison:
    """A comparison with this ratio; the original takes 12 ms."""
    before, after = (Timing(ms, ms, ms, 9) for ms in (12.0, 12.0 / ratio))
    return Comparison(
        before, after, ratio, ratio, ratio, 1.0, runtime, "cpu", batch, "float32", 1, {}
    )


def timed_by_size(before: nn.Module, after: nn.Module, *_: Any, **options: Any) -> Comparison:
    """In place of `compare_modules`: time is proportional to the number of parameters."""
    ratio = parameters(before) / parameters(after)
    return comparison(ratio, options.get("runtime", "torch"), options.get("batch"))


def op_times_by_size(stepper: Stepper, of: Collection[fx.Node]) -> dict[fx.Node, float]:
    """In place of `Stepper.times`: what an op takes is proportional to the weights it reads."""
    held: dict[fx.Node, float] = {}
    for step in stepper.steps():
        if step.node in of:
            read = zip(step.node.args, step.args, strict=True)
            held[step.node] = 1e-3 * (
                1 + sum(t.numel() for n, t in read if isinstance(n, fx.Node) and n.op == "get_attr")
            )
    return held
