"""A user's own op: frozen without a rule, prunable with the one that CONTRIBUTING.md shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import TOKENS, found, module, weight
from torch import Tensor, nn

from prunec import passes
from prunec.compiler import Graph, PassManager, capture
from prunec.compiler.errors import RuleError
from prunec.compiler.inference.rule import RULES, op_rule

CONTRIBUTING = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@torch.library.custom_op("mylib::scale_rows", mutates_args=())
def scale_rows(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight[:, None]


scale_rows.register_fake(lambda x, weight: torch.empty_like(x))


@pytest.fixture(autouse=True)
def _rules() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def graph() -> Graph:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.linear(x, scale_rows(self.w, self.g)).relu())

    return capture(module(forward, w=weight(10, 8), g=weight(10), head=nn.Linear(10, 5)), (TOKENS,))


def documented_rule() -> str:
    blocks = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if "mylib::scale_rows" in block)


def test_an_op_without_a_rule_freezes_and_is_named() -> None:
    captured = graph()
    assert found(captured) == ()
    assert "no rule for mylib::scale_rows" in captured.explain()


def test_the_documented_rule_makes_its_dimension_prunable_and_proven() -> None:
    exec(documented_rule(), {})
    captured = graph()
    assert captured.inference.failures == {}
    assert found(captured) == ("hidden 10",)
    result = PassManager(
        [passes.MagnitudeScore(), passes.PruneChannels(0.5), passes.SparseToDense()]
    ).run(captured)
    proof = result.verify()
    assert proof.passed
    assert proof.masked_error is not None
    assert result.plan.slices()["w"][0].numel() == 5
    assert result.model(TOKENS).shape == (3, 7, 5)


def test_a_rule_of_the_user_replaces_a_built_in_one() -> None:
    @op_rule("aten::relu")
    def relu(c: Any, x: Any) -> Any:
        c.block_all(x, "as the user says")
        return c.terms(x)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())

    net = module(forward, a=nn.Linear(8, 9), b=nn.Linear(9, 5))
    assert "as the user says" in capture(net, (TOKENS,)).explain()


def test_a_rule_needs_a_namespace_and_a_context() -> None:
    with pytest.raises(RuleError, match="needs its namespace"):
        op_rule("relu")(lambda c, x: None)
    with pytest.raises(RuleError, match="first parameter"):
        op_rule("mylib::other")(lambda: None)
