"""A configuration states what its class accepts; counts that only a loss reads follow the cut."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from prunec import compiler, passes

transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 200, (2, 10), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
}


def cut(model: Any, *steps: Any) -> compiler.Result:
    graph = compiler.capture(model.eval(), kwargs={"input_ids": IDS})
    passing = [passes.MagnitudeScore(), *steps, passes.SparseToDense()]
    return compiler.PassManager(passing).run(graph)


def test_configuration_that_its_class_refuses_is_not_stated(tmp_path: pathlib.Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    result = cut(model, passes.PruneHeads(ratio=0.25), passes.PruneChannels(ratio=0.5))
    assert isinstance(result.model, transformers.LlamaForCausalLM)
    result.model.config.validate()
    result.model.save_pretrained(tmp_path)
    assert result.model.config.num_attention_heads in (8, 4, 2)
    if result.model.config.hidden_size != 64:
        assert result.model.config.intermediate_size == 64
    told = [n for n in result.report.notes if "does not state" in n]
    assert len(told) <= 1


def test_head_count_that_does_not_divide_the_width_is_left_out_and_said(
    tmp_path: pathlib.Path,
) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    result = cut(model, passes.PruneHeads(ratio=0.25))
    result.model.save_pretrained(tmp_path)
    assert result.model.config.num_attention_heads == 8
    assert any("num_attention_heads 6" in note for note in result.report.notes)


def test_counts_of_experts_follow_also_where_only_a_loss_reads_them() -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=8)
    model = transformers.MixtralForCausalLM(config)
    result = cut(model, passes.PruneChannels(ratio=0.5, include="expert"))
    assert result.model.config.num_local_experts == 4
    assert result.model.num_experts == 4
    found = result.model(IDS, labels=IDS, output_router_logits=True)
    assert torch.isfinite(found.loss)
    assert model.num_experts == model.config.num_local_experts == 8
