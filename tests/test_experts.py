"""Experts of transformers' own mixtures can go: the router then chooses among those that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from nets import TOKENS, module, weight

from prunec.compiler import PassManager, Target, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.oracles import permutation, restricted_statistics
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure
from prunec.passes import AllocateWidths, MagnitudeScore, PruneChannels, SparseToDense

SHARED = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 5},
    "phimoe": {"num_local_experts": 5},  # chooses twice by max
    "llama4_text": {
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "moe_layers": [0],
        "layer_types": ["full_attention"],
    },
    "deepseek_v3": {  # chooses among groups first
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "q_lora_rank": 16,
        "kv_lora_rank": 12,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **{**SHARED, **MODELS[name]})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fewer_experts_are_the_model_that_chooses_among_those(name: str) -> None:
    ids = torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(0))
    graph = capture(tiny(name), kwargs={"input_ids": ids})
    assert graph.inference.failures == {}
    experts = [d for d in graph.prunable.values() if d.kind == "expert"]
    assert sum(d.size for d in experts) == (6 if name == "deepseek_v3" else 5)
    assert not any(d.exact for d in experts)
    inputs = verification_inputs(Compilation(graph))
    assert permutation(graph, inputs[:1]).passed
    plan = Plan(graph=graph)
    for d in experts:
        plan.remove(d.name, list(range(d.size - max(d.minimum, 2))))
    kept = plan.planned()
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    assert restricted_statistics(graph, dense, kept, inputs).passed


def test_experts_go_only_by_name_and_the_class_stays() -> None:
    ids = torch.randint(61, (3, 7), generator=torch.Generator().manual_seed(0))
    graph = capture(tiny("mixtral"), kwargs={"input_ids": ids})
    (experts,) = [d.name for d in graph.prunable.values() if d.kind == "expert"]

    state = Compilation(graph)
    for step in (MagnitudeScore(), AllocateWidths(Target(width=0.5)), PruneChannels()):
        step.run(state)
    assert state.plan.kept
    assert experts not in state.plan.kept

    result = PassManager(
        [MagnitudeScore(), PruneChannels(ratio=0.4, include="expert"), SparseToDense()]
    ).run(graph)
    assert list(result.plan.kept) == [experts]
    assert type(result.model) is type(graph.source)
    assert result.model.model.layers[0].mlp.experts.gate_up_proj.shape[0] == 3


def test_rows_sorted_by_expert_are_not_compared_where_they_are_sorted() -> None:
    """Which expert comes first is an accident: rows that end in that order are others when experts
    are permuted, and what they are put back to is not."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1)
        share, which = self.router(x).softmax(-1).topk(2, -1)
        which, order = which.reshape(-1).sort()
        rows = torch.einsum("nd,ndh->nh", x[order // 2], self.up[which]).relu()
        rows = torch.einsum("nh,nhd->nd", rows, self.down[which])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return (rows[back].view(*share.shape, -1) * share[..., None]).sum(1)

    net = module(forward, router=torch.nn.Linear(8, 5), up=weight(5, 8, 6), down=weight(5, 6, 8))
    graph = capture(net.eval(), (TOKENS,))
    assert "expert" in {d.kind for d in graph.prunable.values()}
    check = permutation(graph, verification_inputs(Compilation(graph)))
    assert check.passed
    assert not check.unproven
