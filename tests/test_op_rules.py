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
from prunec.compiler.ir.torch_private import argument_names

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


def test_an_error_in_a_rule_is_shown_by_explain() -> None:
    @op_rule("mylib::scale_rows")
    def broken(c: Any, x: Any) -> Any:
        return c.terms(x)[7]

    shown = graph().explain()
    assert "the rule for mylib::scale_rows failed: 1 node(s), first scale_rows" in shown
    assert "IndexError: list index out of range" in shown


def test_an_answer_that_does_not_fit_is_shown_by_explain() -> None:
    op_rule("mylib::scale_rows")(lambda c, x: c.terms(x)[:1])
    shown = graph().explain()
    assert "the rule for mylib::scale_rows does not fit its result" in shown
    assert "terms [" in shown.partition("does not fit its result")[2]


def test_a_parameter_that_is_no_argument_of_the_op_is_refused() -> None:
    def scale_rows(c: Any, x: Any, wieght: Any) -> Any:
        return c.terms(x)

    with pytest.raises(RuleError, match=r"takes 'wieght'.*mylib::scale_rows: it has weight, x"):
        op_rule("mylib::scale_rows")(scale_rows)
    with pytest.raises(RuleError, match="takes 'wieght'"):
        op_rule("aten::linear", "aten::conv2d")(scale_rows)
    assert "mylib::scale_rows" not in RULES


def test_an_op_that_there_is_none_of_is_refused() -> None:
    for op in ("mylib::scale_row", "aten::linaer"):
        with pytest.raises(RuleError, match=f"there is no op '{op}'"):
            op_rule(op)(lambda c: None)


def test_a_rule_for_a_library_that_is_not_loaded_yet_is_taken() -> None:
    op_rule("library_to_come::op")(lambda c, x, anything: c.terms(x))
    assert "library_to_come::op" in RULES


def test_every_built_in_rule_is_of_an_op_that_torch_has() -> None:
    named = [op for op in RULES if op != "prunec::pointwise" and op.startswith("aten::")]
    assert [op for op in named if argument_names(op) is None] == []


def test_a_rule_needs_a_namespace_and_a_context() -> None:
    with pytest.raises(RuleError, match="needs its namespace"):
        op_rule("relu")(lambda c, x: None)
    with pytest.raises(RuleError, match="first parameter"):
        op_rule("mylib::other")(lambda: None)
