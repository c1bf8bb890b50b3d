"""The checks see mistakes: rules are broken on purpose, and the culprit is named."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken_rules import (
    BREAKS,
    Break,
    P,
    R,
    S,
    Z,
    breaks,
    joined,
    reversed_cat,
    tied_only_without_weights,
)
from nets import TOKENS, lively, module
from torch import Tensor, nn

from prunec.compiler import Graph, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import VerificationError
from prunec.compiler.inference import exactness
from prunec.compiler.inference.rule import RULES, OpRule
from prunec.compiler.ir.terms import Var
from prunec.compiler.rewrite.dead import DeadEntries
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.rewrite.slicing import Kept
from prunec.compiler.verify.blame import blame_permutation, blame_plan
from prunec.compiler.verify.check import TOLERANCE
from prunec.compiler.verify.difference import relative_error
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.compiler.verify.oracles import (
    permutation,
    permuted,
    restricted_statistics,
    zero_mask,
)
from prunec.compiler.verify.prove import prove, verification_inputs
from prunec.compiler.verify.structure import check_structure


def broken_graph(monkeypatch: pytest.MonkeyPatch, case: Break) -> Graph:
    arguments = tuple(inspect.signature(case.rule).parameters)[1:]
    monkeypatch.setitem(RULES, case.op, OpRule(case.op, case.rule, arguments))
    model = case.net()
    lively(model)
    graph = capture(model, (TOKENS,))
    assert graph.inference.failures == {}
    return graph


def half(graph: Graph) -> dict[Var, Tensor]:
    kept: dict[Var, Tensor] = {}
    for i, d in enumerate(graph.prunable.values()):
        order = torch.randperm(d.size, generator=torch.Generator().manual_seed(i))
        assert d.var is not None
        kept[d.var] = order[: d.size // 2].sort().values
    return kept


def exact_part(graph: Graph, kept: Kept) -> Kept:
    exact = {d.var for d in graph.prunable.values() if d.exact}
    return {var: entries for var, entries in kept.items() if var in exact}


def sees(graph: Graph, check: str) -> str | None:
    """What a check says of the broken rule, None when it sees nothing."""
    inputs = verification_inputs(Compilation(graph))
    kept = half(graph)
    if check == "structure":
        try:
            check_structure(graph, rewrite(graph, kept), kept)
        except VerificationError as error:
            return str(error)
        return None
    if check == "permutation":
        outcome = permutation(graph, inputs[:1])
        return None if outcome.passed else blame_permutation(graph, inputs[0])
    if check == "zero mask":
        kept = exact_part(graph, kept)
        outcome = zero_mask(graph, rewrite(graph, kept), kept, inputs)
    else:
        outcome = restricted_statistics(graph, rewrite(graph, kept), kept, inputs)
    if outcome.passed:
        return None
    return blame_plan(graph, kept, inputs[0], statistics=check == "restricted statistics")


def seen(graph: Graph, check: str) -> str | None:
    try:
        return sees(graph, check)
    except RuntimeError:  # the dense graph does not run: the structure check comes before this one
        assert sees(graph, "structure") is not None
        return None


@pytest.mark.parametrize("case", BREAKS, ids=lambda c: f"{c.rule.__name__}-{c.net.__name__}")
def test_a_broken_rule_is_seen_and_its_dimension_and_node_are_named(
    monkeypatch: pytest.MonkeyPatch, case: Break
) -> None:
    graph = broken_graph(monkeypatch, case)
    messages = {check: seen(graph, check) for check in (P, Z, R, S)}
    assert {check for check, message in messages.items() if message} == case.seen_by
    for message in filter(None, messages.values()):
        named = [d for d in graph.prunable if repr(d) in message]
        assert named, message
        nodes = [n.name for n in graph.program.graph.nodes if n.op == "call_function"]
        assert re.search(rf"node ({'|'.join(nodes)})\b", message), message


@pytest.mark.parametrize("check", [P, Z, R, S])
def test_every_check_sees_two_breaks_or_more(check: str) -> None:
    assert sum(check in case.seen_by for case in BREAKS) >= 2


def test_some_breaks_are_seen_by_one_check_only() -> None:
    alone = [next(iter(case.seen_by)) for case in BREAKS if len(case.seen_by) == 1]
    assert {R, S} <= set(alone)


def test_the_proof_stops_with_the_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = broken_graph(monkeypatch, breaks(reversed_cat, "cat", joined))
    kept = half(graph)
    inputs = verification_inputs(Compilation(graph))
    with pytest.raises(VerificationError, match=r"permutation check failed.*'a:hidden'.*node cat"):
        prove(graph, rewrite(graph, kept), kept, DeadEntries(), inputs)


def test_a_statistic_without_a_reference_is_reported_as_skipped() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x) * (self.stem(x) > 0).all(-1, keepdim=True))

    graph = capture(module(forward, stem=nn.Linear(8, 6), head=nn.Linear(6, 5)), (TOKENS,))
    kept = half(graph)
    inputs = verification_inputs(Compilation(graph))
    checks = prove(graph, rewrite(graph, kept), kept, DeadEntries(), inputs)
    assert "no reference for all" in checks[-1].skipped
    assert checks[-1].error is None


# weights that hide mistakes


def scaled_branch(scale: float) -> Callable[[], nn.Module]:
    def net() -> nn.Module:
        def forward(self: Any, x: Tensor) -> Tensor:
            branch = self.down(F.silu(self.gate(x)) * self.up(x))
            return self.head(x) + self.layer_scale * branch

        return module(
            forward,
            gate=nn.Linear(8, 10),
            up=nn.Linear(8, 10),
            down=nn.Linear(10, 5),
            head=nn.Linear(8, 5),
            layer_scale=nn.Parameter(torch.full((5,), scale)),
        )

    return net


def zero_gamma() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        branch = self.norm(self.up(F.silu(self.gate(x)) * self.side(x)))
        return self.tail(x) + self.head(branch)

    net = module(
        forward,
        gate=nn.Conv1d(7, 10, 1),
        side=nn.Conv1d(7, 10, 1),
        up=nn.Conv1d(10, 6, 1),
        norm=nn.BatchNorm1d(6),
        head=nn.Conv1d(6, 5, 1),
        tail=nn.Conv1d(7, 5, 1),
    )
    nn.init.zeros_(net.norm.weight)
    return net


@pytest.mark.parametrize("net", [scaled_branch(1e-6), scaled_branch(0.0), zero_gamma])
def test_a_break_behind_a_vanishing_scale_is_seen_through_rescaled_weights(
    monkeypatch: pytest.MonkeyPatch, net: Callable[[], nn.Module]
) -> None:
    rule = OpRule("aten::mul", tied_only_without_weights, ("x", "other"))
    monkeypatch.setitem(RULES, "aten::mul", rule)
    graph = capture(net().eval(), (TOKENS,))
    inputs = verification_inputs(Compilation(graph))
    kept = exact_part(graph, half(graph))
    # the outputs tell nothing on these weights: no proof, unless what lies before them shows
    assert zero_mask(graph, rewrite(graph, kept), kept, inputs).state != "proven"
    outcome = permutation(graph, inputs[:1])
    assert not outcome.passed
    assert "node mul" in blame_permutation(graph, inputs[0])


@pytest.mark.parametrize("net", [scaled_branch(1e-6), scaled_branch(0.0), zero_gamma])
def test_rescaled_weights_make_a_wrong_permutation_move_the_output(
    net: Callable[[], nn.Module],
) -> None:
    graph = capture(net().eval(), (TOKENS,))
    inputs = verification_inputs(Compilation(graph))
    outcome = permutation(graph, inputs[:1])
    assert outcome.passed
    assert outcome.sensitivity is not None
    assert outcome.sensitivity > 1e-2
    plain = ProgramInterpreter(graph.program)(inputs[0])
    branch = [d for d in graph.prunable.values() if d.kind == "hidden" or d.name.startswith("gate")]
    wrong = permuted(graph, branch, 0, None, lambda _, t: t, consistent=False)
    assert relative_error(wrong(inputs[0]), plain) < TOLERANCE


# what says that a dimension is exact, and what happens without the checks


def test_an_op_wrongly_said_to_keep_zeros_is_seen_by_the_zero_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x).exp()
        return y @ y.transpose(1, 2)

    def outcome() -> bool | None:
        torch.manual_seed(0)
        graph = capture(module(forward, stem=nn.Linear(8, 6)), (TOKENS,))
        kept = exact_part(graph, half(graph))
        inputs = verification_inputs(Compilation(graph))
        return zero_mask(graph, rewrite(graph, kept), kept, inputs).passed if kept else None

    assert outcome() is None  # the dimension is norm-coupled
    monkeypatch.setattr(exactness, "KEEP_ZERO", exactness.KEEP_ZERO | {"exp"})
    assert outcome() is False


@pytest.mark.parametrize(
    "case",
    [case for case in BREAKS if S not in case.seen_by],
    ids=lambda c: f"{c.rule.__name__}-{c.net.__name__}",
)
def test_only_the_checks_stand_between_a_broken_rule_and_a_wrong_model(
    case: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = broken_graph(monkeypatch, case)
    kept = half(graph)
    inputs = verification_inputs(Compilation(graph))
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    outputs = ProgramInterpreter(dense)(inputs[0])  # it runs, and no check but these would object
    assert all(bool(torch.isfinite(x).all()) for x in outputs)
    with pytest.raises(VerificationError, match="check failed"):
        prove(graph, dense, kept, DeadEntries(), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_width_are_rescaled(dtype: torch.dtype) -> None:
    graph = capture(joined().to(dtype), (TOKENS.to(dtype),))
    outcome = permutation(graph, verification_inputs(Compilation(graph))[:1])
    assert outcome.passed
    assert outcome.sensitivity is not None
    assert outcome.sensitivity > 1e-2
