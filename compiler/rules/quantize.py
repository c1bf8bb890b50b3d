"""Fake quantizers: what they round stays as it is.

A value at the border of two steps falls to either side by the last bit of a sum, and observers take
minima and maxima over whole tensors: no smaller net rounds alike, so nothing could be proven.
"""

from __future__ import annotations

from typing import Any

from ..inference.rule import RuleContext, op_rule


@op_rule(
    "aten::fused_moving_avg_obs_fake_quant",
    "aten::_fused_moving_avg_obs_fq_helper",
    "aten::fake_quantize_per_tensor_affine",
    "aten::fake_quantize_per_channel_affine",
    "aten::_fake_quantize_learnable_per_tensor_affine",
    "aten::_fake_quantize_learnable_per_channel_affine",
)
def fake_quantize(c: RuleContext) -> Any:
    text = "rounded by a fake quantizer: prune the float model first, then prepare it (QAT)"
    for x in c.node.all_input_nodes:
        c.block_all(x, text)
    return c.frozen_result(text)
