"""Dropout called as a function works again in train mode of a graph module."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import compiler
from prunec.compiler import Result, Target

X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A transformer layer with dropout as a function, as transformers writes it; a number written
    into forward leaves it to the graph."""

    p, attention_p = 0.5, 0.4
    fused = True

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.layer = nn.Dropout(0.1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rate = self.attention_p if self.training else 0.0
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return F.dropout(weights, p=rate, training=self.training) @ v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        h = F.dropout(F.gelu(self.up(x)), self.p, self.training)
        return self.layer(self.down(h.reshape(-1, x.shape[1], 16 + 16)))


class Unfused(Encoder):
    fused = False


class Shaky(Encoder):
    """Whole samples are dropped in training by an operation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h * torch.rand(len(h), 1, 1).gt(0.5) if self.training else h


class Steered(Encoder):
    """Training leaves torch: it cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h * float(h.detach().numpy().std()) if self.training else h


def graph_of(cls: type[nn.Module]) -> Result:
    torch.manual_seed(0)
    result = compiler.compile(cls().eval(), X, target=Target(width=0.5), measure=False)
    assert result.model is result.graph_module
    return result


def rates(module: nn.Module) -> dict[str, float]:
    return {type(m).__name__: m.p for m in module.modules() if hasattr(m, "p")}


def differs(module: nn.Module) -> bool:
    torch.manual_seed(1)
    first = module(X)
    return not torch.equal(first, module(X))


@pytest.mark.parametrize("cls", [Encoder, Unfused])
def test_functional_dropout_drops_in_train_mode_only(cls: type[nn.Module]) -> None:
    module: Any = graph_of(cls).model
    assert not differs(module)
    found = [m.p for m in module.modules() if hasattr(m, "p")]
    assert sorted(found) == [0.1, 0.4, 0.5]
    for own in module.modules():  # each drops by itself
        if hasattr(own, "p"):
            module.eval()
            own.training = True
            assert differs(module), own
    assert differs(copy.deepcopy(module).train())
    assert not differs(module.eval())


def test_standard_dropout_layers_stay_where_they_were() -> None:
    module = graph_of(Encoder).model
    assert isinstance(module.get_submodule("layer"), nn.Dropout)
    assert set(rates(module)) == {"AttentionDropout", "Dropout"}


def test_attention_with_dropout_keeps_its_options() -> None:
    module = graph_of(Encoder).model
    changed = X.clone()
    changed[:, -1] += 1  # causal: earlier positions do not see it
    assert torch.allclose(module(X)[:, :-1], module(changed)[:, :-1], atol=1e-6)


def test_functional_dropout_is_stored(tmp_path: pathlib.Path) -> None:
    result = graph_of(Unfused)
    loaded = compiler.load(result.save(tmp_path / "small"))
    assert torch.allclose(loaded(X), result.model(X), atol=1e-6)
    assert sorted(m.p for m in loaded.modules() if hasattr(m, "p")) == [0.1, 0.4, 0.5]


def test_randomness_that_is_no_dropout_is_reported() -> None:
    result = graph_of(Shaky)
    assert any("what is random in training" in note for note in result.report.notes)


def test_training_that_cannot_be_captured_keeps_the_rates_that_eval_shows() -> None:
    result = graph_of(Steered)
    assert any("could not be looked for in training" in n for n in result.report.notes)
    assert sorted(m.p for m in result.model.modules() if hasattr(m, "p")) == [0.1, 0.5]
