"""The module back end: the user's own class, smaller, and refused where it does not hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from module_trial import Trial, only_tensor
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from prunec.compiler.emit.module_backend import build_module
from prunec.compiler.emit.replay import apply_attributes, replay
from prunec.compiler.errors import PlanError
from prunec.compiler.inference.graph import Graph
from prunec.compiler.rewrite.folds import Fold
from prunec.compiler.rewrite.slicing import Kept

TOKENS = torch.arange(14).reshape(2, 7) % 11


class ConvNet(nn.Module):
    """Residual, depthwise, grouped, transposed; a layer the program does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.inner = nn.Conv2d(16, 16, 1)
        self.group_norm = nn.GroupNorm(4, 16)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4, padding=1)
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.head = nn.Linear(8, 5, bias=False)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.stem(x)))
        h = F.relu(h + self.inner(self.depthwise(h)))
        h = F.relu(self.grouped(F.relu(self.group_norm(h))))
        return self.head(self.up(h).mean((2, 3)))


@pytest.fixture(scope="module")
def conv() -> Trial:
    return Trial(ConvNet(), (torch.randn(2, 3, 8, 8),))


def test_cnn_shares_the_dense_programs_tensors(conv: Trial) -> None:
    trial = conv
    module, tensors = trial.module, trial.dense.tensors
    assert module.stem.weight is tensors["stem.weight"] is trial.reference.stem.weight
    assert module.norm.running_mean is tensors["norm.running_mean"]
    assert module.unused.weight is not trial.model.unused.weight
    assert (module.stem.out_channels, module.norm.num_features) == (8, 8)
    assert (module.depthwise.groups, module.depthwise.in_channels) == (8, 8)
    assert module.grouped.groups == module.group_norm.num_groups
    assert module.up.in_channels == module.grouped.out_channels
    assert module.head.in_features == module.up.out_channels == 4
    assert trial.model.stem.out_channels == 16
    trial.check_replay()


def test_a_folded_constant_becomes_a_new_bias() -> None:
    vector = torch.randn(5)

    def folds(graph: Graph) -> list[Fold]:
        weight = next(n for n in graph.program.graph.nodes if n.target == "head.weight")
        return [Fold(next(iter(weight.users)).name, 1, vector)]

    trial = Trial(ConvNet(), (torch.randn(2, 3, 8, 8),), folds=folds)
    assert trial.module.head.bias is trial.dense.tensors["head.bias"]
    assert trial.model.head.bias is None
    new = {"head.bias": vector.clone()}
    small = replay(trial.model, trial.slices(), trial.result.attributes, new, {})
    assert trial.compare(small) < 1e-5
    assert isinstance(small.head.bias, nn.Parameter)
    with pytest.raises(PlanError, match="no place"):
        replay(trial.model, trial.slices(), {}, {"nowhere.bias": vector}, {})


def test_a_constant_without_a_bias_is_refused() -> None:
    def folds(graph: Graph) -> list[Fold]:
        node = next(n for n in graph.program.graph.nodes if n.name == "mean")
        return [Fold(node.name, 1, torch.ones(8))]

    trial = Trial(ConvNet(), (torch.randn(2, 3, 8, 8),), folds=folds)
    assert trial.result.module is None
    assert "no bias" in trial.result.reason
    assert "differs" in trial.result.reason


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=11,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=16,
            num_labels=3,
        )
    )


def test_bert() -> None:
    trial = Trial(bert(), (TOKENS,), ("head", "hidden", "residual"), "logits")
    module, config = trial.module, trial.module.config
    attention = module.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (2, 24)
    assert attention.attention_head_size == 12
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (24, 2, 32)
    assert attention.config is config is not trial.model.config
    assert trial.model.config.hidden_size == 48
    assert trial.model.bert.encoder.layer[0].attention.self.num_attention_heads == 4
    trial.check_replay()


def test_bert_with_layers_that_differ_keeps_its_config() -> None:
    class First(Trial):
        def choose(self, kinds: Collection[str], keep: Any) -> Kept:
            d = next(d for d in self.graph.prunable.values() if d.kind == "head")
            return {d.var: torch.tensor([0, 2, 3])}

    trial = First(bert(), (TOKENS,), outputs="logits")
    layers = trial.module.bert.encoder.layer
    assert [x.attention.self.num_attention_heads for x in layers] == [3, 4]
    assert trial.module.config.num_attention_heads == 4


def llama(tied: bool = False) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=12,
            intermediate_size=64,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
        )
    )


def test_llama_generates_with_its_cache() -> None:
    trial = Trial(llama(), (TOKENS,), ("kv-head", "hidden", "residual"), "logits")
    module, prompt = trial.module, TOKENS[:1, 1:6]
    config = module.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.hidden_size, config.head_dim, config.intermediate_size) == (24, 12, 32)
    assert module.model.layers[0].self_attn.num_key_value_groups == 2
    options = {"max_new_tokens": 8, "do_sample": False}
    cached = module.generate(prompt, **options)
    assert torch.equal(cached, module.generate(prompt, use_cache=False, **options))
    expected = prompt
    for _ in range(8):  # by hand, with the graph (whose batch is dynamic from 2 on)
        logits = only_tensor(trial.reference(expected.expand(2, -1)))
        expected = torch.cat([expected, logits[:1, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, expected)
    trial.check_replay()


def test_llama_head_widths_and_query_groups() -> None:
    def keep(size: int) -> Tensor:
        return torch.arange(size // 2)

    trial = Trial(llama(), (TOKENS,), ("query-group", "head-dim"), "logits", keep=keep)
    attention = trial.module.model.layers[1].self_attn
    assert attention.num_key_value_groups == 1 or attention.head_dim == 6
    trial.check_replay()


def test_tied_embeddings_stay_tied(tmp_path: Any) -> None:
    trial = Trial(llama(tied=True), (TOKENS,), ("residual",), "logits")
    module = trial.module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert module.lm_head.in_features == module.model.embed_tokens.embedding_dim == 24
    trial.check_replay()
    small = replay(trial.model, trial.slices(), trial.result.attributes, {}, {})
    assert small.lm_head.weight is small.model.embed_tokens.weight
    module.save_pretrained(tmp_path)
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert trial.compare(reloaded) < 1e-5


def test_vit_with_fewer_heads_states_its_head_width() -> None:
    model = ViTForImageClassification(
        ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=5,
        )
    )
    trial = Trial(model, (torch.randn(2, 3, 16, 16),), ("head", "hidden"), "logits")
    config = trial.module.config
    assert (config.num_attention_heads, config.head_dim, config.hidden_size) == (2, 12, 48)
    trial.check_replay()


def test_gpt2_splits_at_its_new_width() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=11,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    trial = Trial(model, (TOKENS,), ("head",), "logits", keep=lambda size: torch.arange(1, size))
    assert trial.trials == 2  # the split shows the new width; then the config
    attention = trial.module.transformer.h[0].attn
    assert (attention.split_size, attention.num_heads, attention.head_dim) == (36, 3, 12)
    assert (attention.c_attn.nf, attention.c_attn.nx, attention.c_proj.nx) == (108, 48, 36)
    assert (trial.module.config.n_head, trial.module.config.n_embd) == (3, 48)
    trial.check_replay()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(10, 32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.head(h.mean(1))


def test_multihead_attention_needs_heads_and_width_to_agree() -> None:
    x = torch.randn(2, 6, 10)
    trial = Trial(Attending(), (x,), ("head", "residual"))
    attention = trial.module.attention
    assert (attention.num_heads, attention.embed_dim, attention.head_dim) == (2, 16, 8)
    trial.check_replay()
    refused = Trial(Attending(), (x,), ("head",))
    assert refused.result.module is None
    assert "Attending.forward at test_module_backend.py:" in refused.result.reason
    assert "\n" not in refused.result.reason
    assert refused.trials <= 24


def test_lstm() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 12)
            self.lstm = nn.LSTM(12, 16, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.lstm(self.embed(ids))[0][:, -1])

    trial = Trial(Tagger(), (TOKENS,))
    lstm = trial.module.lstm
    assert lstm.input_size == 6
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))
    trial.check_replay()


class Window(nn.Module):
    """The number of heads equals their width, and a layer_idx equals it too."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx, self.heads, self.width = index, 8, 8
        self.shape = (3, 8, 8)
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, self.shape).permute(2, 0, 3, 1, 4)
        h = F.softmax(q @ k.transpose(-2, -1) * 0.3, -1) @ v
        return self.proj(h.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.width))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(10, 64)
        self.blocks = nn.ModuleList([Window(7), Window(8)])
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h.mean(1))


@pytest.mark.parametrize("kind", ["head", "head-dim"])
def test_equal_numbers_are_told_apart_by_trying(kind: str) -> None:
    class Chosen(Trial):
        def choose(self, kinds: Collection[str], keep: Any) -> Kept:
            found = [d for d in self.graph.prunable.values() if d.kind == kind]
            if kind == "head-dim":  # q and k share one width, v has another: cut both alike
                assert len(found) >= 2
            return {d.var: keep(d.size) for d in found}

    trial = Chosen(Stack(), (torch.randn(2, 6, 10),))
    for index, block in enumerate(trial.module.blocks):
        assert block.shape == ((3, 4, 8) if kind == "head" else (3, 8, 4))
        assert block.heads * block.width == 32
        assert block.layer_idx == 7 + index
    assert trial.trials <= 24 + 2
    trial.check_replay()


def test_literal_sizes_in_forward_are_refused() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.head = nn.Linear(10, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.q(x).view(2, -1, 4, 8).relu().reshape(2, -1, 32))

    trial = Trial(Literal(), (torch.randn(2, 6, 10),))
    assert trial.result.module is None
    assert "Literal.forward at test_module_backend.py:" in trial.result.reason
    assert trial.result.attributes == {}
    trial.check_original()


def test_a_module_that_runs_and_is_wrong_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.head = nn.Linear(10, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.q(x)
            return self.head(F.relu(h)) / h.shape[-1]

    trial = Trial(Mean(), (torch.randn(2, 6, 10),))
    assert trial.result.module is None
    assert trial.result.reason.startswith("the module runs but differs from the graph by 1")


def test_generated_values_that_were_selected_are_refused() -> None:
    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.head = nn.Linear(10, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.q(x)
            return self.head(F.relu(h + torch.arange(32.0)))

    trial = Trial(Ramp(), (torch.randn(2, 6, 10),))
    assert trial.result.module is None
    assert "makes values from a size" in trial.result.reason
    assert trial.trials == 0


def test_models_that_cannot_be_copied_are_refused() -> None:
    class Locked(ConvNet):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a lock")

    trial = Trial(Locked(), (torch.randn(2, 3, 8, 8),))
    assert trial.result.module is None
    assert trial.result.reason == "the model cannot be copied: holds a lock"


def test_a_comparison_of_nan_is_no_agreement(conv: Trial) -> None:
    result = build_module(conv.graph, conv.dense, conv.kept, lambda m: math.nan, 1e-5)
    assert result.module is None


def test_hooks_modes_and_frozen_parameters_are_kept() -> None:
    model = ConvNet()
    model.stem.weight.requires_grad_(False)
    seen: list[Any] = []
    model.head.register_forward_hook(lambda m, args, out: seen.append(m))
    trial = Trial(model, (torch.randn(2, 3, 8, 8),))
    module = trial.module
    assert not module.stem.weight.requires_grad
    assert module.head.weight.requires_grad
    assert seen[-1] is module.head
    assert not module.training
    twin = copy.deepcopy(module).train()
    twin(torch.randn(2, 3, 8, 8)).sum().backward()
    assert module.head.weight.grad is None


def test_replay_refuses_another_model(conv: Trial) -> None:
    trial = conv
    shapes = {name: list(t.shape) for name, t in trial.model.state_dict().items()}
    attributes = trial.result.attributes
    other = ConvNet()
    other.stem = nn.Conv2d(3, 12, 3)
    with pytest.raises(PlanError, match=r"stem\.weight.*original shapes"):
        replay(other, trial.slices(), attributes, {}, shapes)
    del other.stem
    with pytest.raises(PlanError, match="does not have"):
        replay(other, trial.slices(), attributes, {}, shapes)
    wrong = ConvNet()
    wrong.depthwise.groups = 4
    with pytest.raises(PlanError, match=r"depthwise\.groups from 16 to 8"):
        apply_attributes(wrong, {"depthwise": {"groups": [16, 8]}})
