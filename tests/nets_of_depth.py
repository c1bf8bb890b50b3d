"""Residual nets of several layers, for what drops branches and blocks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from nets import floats, lively
from tiny_models import IDS, IMAGES
from torch import Tensor, nn

ROWS = floats(4, 6, 8)
PICTURES = floats(3, 3, 8, 8)
WIDTHS = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


class Mlp(nn.Module):
    """A branch: two layers."""

    def __init__(self, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Layer(nn.Module):
    """Two branches, each with a norm before it or behind its sum."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.mix, self.mlp = nn.Linear(8, 8), Mlp()
        self.one, self.two = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + torch.tanh(self.mix(self.one(x)))
            return x + self.mlp(self.two(x))
        x = self.one(x + torch.tanh(self.mix(x)))
        return self.two(x + self.mlp(x))


class Stack(nn.Module):
    """Layers between a stem and a head; how many is also an attribute."""

    def __init__(self, norm_first: bool = True, count: int = 3) -> None:
        super().__init__()
        self.num_layers = count
        self.stem = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Layer(norm_first) for _ in range(count))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(self.num_layers):
            x = self.layers[i](x)
        return self.head(self.norm(x))


class Inline(nn.Module):
    """The same without a module of its own for each layer: only what repeats tells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.weights = nn.ParameterList(0.3 * torch.randn(8, 8) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(0, 6, 2):
            x = x + torch.relu(x @ self.weights[i])
            x = x + torch.tanh(x @ self.weights[i + 1])
        return self.head(x)


class Bottleneck(nn.Module):
    """A convolutional block; with a stride, its shortcut is a projection."""

    def __init__(self, a: int, b: int, stride: int = 1, in_place: bool = False) -> None:
        super().__init__()
        self.one = nn.Conv2d(a, b, 3, stride, 1)
        self.norm = nn.BatchNorm2d(b)
        self.two = nn.Conv2d(b, b, 3, 1, 1)
        self.last = nn.BatchNorm2d(b)
        self.short = nn.Conv2d(a, b, 1, stride) if stride > 1 else nn.Identity()
        self.act = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.two(self.act(self.norm(self.one(x)))))
        if self.in_place:
            y += self.short(x)
            return self.act(y)
        return self.act(y + self.short(x))


class Residual(nn.Module):
    """Convolutional blocks in two stages."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.body = nn.Sequential(
            Bottleneck(6, 6, in_place=in_place),
            Bottleneck(6, 6, in_place=in_place),
            Bottleneck(6, 10, 2, in_place=in_place),
            Bottleneck(10, 10, in_place=in_place),
        )
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Nested(nn.Module):
    """A branch that has branches, and two that are added side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.inner, self.outer, self.left, self.right = Mlp(), Mlp(), Mlp(), Mlp()
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.gate(x)
        y = y + self.inner(y)
        x = x + self.outer(y)
        x = x + (self.left(x) + self.right(torch.sin(x)))
        return self.head(x)


class SharedTable(nn.Module):
    """The first block makes a table that the others read too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.position = nn.Linear(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        table = None
        for layer in self.layers:
            if table is None:
                steps = torch.arange(6.0, device=x.device)[:, None] / 6
                table = torch.softmax(self.position(steps), -1)
            x = x + table @ torch.tanh(layer(x))
        return self.head(x)


def made(kind: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    """A net with lively norms and biases, in eval mode; the same at each call."""
    torch.manual_seed(0)
    model = kind(*args, **options).eval()
    lively(model)
    return model


def _filled(model: Any) -> Any:
    """Biases off zero, so that a dropped branch is missed."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def deep_bert(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **WIDTHS, num_hidden_layers=3, vocab_size=99, max_position_embeddings=32, **options
    )
    return _filled(transformers.BertForSequenceClassification(config))


def deep_llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **WIDTHS, num_hidden_layers=3, num_key_value_heads=2, vocab_size=99, **options
    )
    return _filled(transformers.LlamaForCausalLM(config))


def deep_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=99, bos_token_id=1, eos_token_id=2
    )
    return _filled(transformers.GPT2LMHeadModel(config))


def deep_vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**WIDTHS, num_hidden_layers=3, image_size=8, patch_size=4)
    return _filled(transformers.ViTForImageClassification(config))


TRANSFORMERS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "bert": (deep_bert, (), {"input_ids": IDS}),
    "llama": (deep_llama, (), {"input_ids": IDS}),
    "gpt2": (deep_gpt2, (), {"input_ids": IDS}),
    "vit": (deep_vit, (IMAGES,), {}),
}
