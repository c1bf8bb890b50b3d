"""The checks see mistakes: rules are broken on purpose, and the culprit is named."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import TOKENS, lively, module
from torch import Tensor, nn

from prunec.compiler import Graph, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.errors import VerificationError
from prunec.compiler.inference.rule import RULES, OpRule, RuleContext, Terms
from prunec.compiler.ir.terms import Var, concat, factor, product, resolve
from prunec.compiler.rewrite.dead import DeadEntries
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.rewrite.slicing import Kept
from prunec.compiler.rules.attention import scaled_dot_product_attention
from prunec.compiler.rules.normalize import layer_norm
from prunec.compiler.rules.pointwise import pointwise
from prunec.compiler.rules.view import cat, slice_
from prunec.compiler.verify.blame import blame_permutation, blame_plan
from prunec.compiler.verify.interpreter import ProgramInterpreter, relative_error
from prunec.compiler.verify.oracles import (
    TOLERANCE,
    permutation,
    permuted,
    restricted_statistics,
    zero_mask,
)
from prunec.compiler.verify.prove import prove, verification_inputs
from prunec.compiler.verify.structure import check_structure

Rule = Callable[..., Any]


# broken rules


def untied_pointwise(c: RuleContext) -> Terms:
    """Operands are not tied: each keeps a width of its own."""
    operands = [n for n in c.node.all_input_nodes if c.terms(n)]
    for n in operands[1:]:
        for axis, term in enumerate(c.terms(n)):
            c.contract(term, [(n, axis)], [], counted=False)
    return c.terms(operands[0])


def untied_attention(c: RuleContext, query: Any, key: Any, value: Any) -> Terms:
    """The widths of queries and keys are two dimensions."""
    q, k, v = c.terms(query), c.terms(key), c.terms(value)
    for a, b, d in zip(q[:-2], k[:-2], v[:-2], strict=True):
        c.unify(a, b)
        c.unify(a, d)
    c.contract(q[-1], [(query, 3)], [])
    c.contract(k[-1], [(key, 3)], [])
    return [*q[:-1], v[-1]]


def attention_without_a_pinned_scale(
    c: RuleContext, query: Any, key: Any, value: Any, attn_mask: Any, scale: Any, enable_gqa: Any
) -> Terms:
    return scaled_dot_product_attention(c, query, key, value, attn_mask, 1.0, enable_gqa)


def column_major_view(c: RuleContext, x: Any, size: Any) -> Terms:
    """The last axis is taken apart with the wrong factor outside."""
    terms = c.terms(x)
    *lead, outer, inner = c.out_shape
    assert outer
    assert inner
    pair = factor(terms[-1], inner)
    assert pair is not None
    out = [*(c.fixed(s) for s in lead), pair[1], pair[0]]
    c.resize("size", out)
    return out


def reversed_cat(c: RuleContext, tensors: Any, dim: Any) -> Terms:
    out = cat(c, tensors, dim)
    axis = c.axis(dim, len(out))
    return [*out[:axis], concat([c.terms(x)[axis] for x in reversed(tensors)]), *out[axis + 1 :]]


def convolution_blind_to_groups(c: RuleContext, x: Any, weight: Any, bias: Any) -> Terms:
    """Results may be reordered across groups."""
    w = c.terms(weight)
    c.unify(c.terms(bias)[0], w[0])
    c.contract(w[0], [(weight, 0)], [], weight)
    return [c.terms(x)[0], w[0], *(c.fixed(s) for s in c.out_shape[2:])]


def layer_norm_without_statistics(
    c: RuleContext, x: Any, normalized_shape: Any, weight: Any, bias: Any
) -> Terms:
    out = layer_norm(c, x, normalized_shape, weight, bias)
    c.inference.statistics.pop()
    return out


def layer_norm_without_resizing(
    c: RuleContext, x: Any, normalized_shape: Any, weight: Any, bias: Any
) -> Terms:
    out = layer_norm(c, x, normalized_shape, weight, bias)
    c.inference.rewrites.pop(c.node)
    return out


def group_norm_without_resizing(
    c: RuleContext, x: Any, num_groups: int, weight: Any, bias: Any
) -> Terms:
    """Fewer groups, and the number of groups stays."""
    terms = c.terms(x)
    for parameter in (weight, bias):
        c.unify(c.terms(parameter)[0], terms[1])
    pair = factor(terms[1], num_groups)
    assert pair is not None
    c.block(pair[1], "a test")
    return terms


def untied_layer_norm(c: RuleContext, x: Any, normalized_shape: Any, weight: Any) -> Terms:
    """gamma and beta are dimensions of their own."""
    for n in (x, weight):
        c.statistic(c.terms(n)[-1], "layer_norm takes statistics over it")
    c.resize("normalized_shape", c.terms(x)[-1:])
    return c.terms(x)


def softmax_without_statistics(c: RuleContext, x: Any) -> Terms:
    return c.terms(x)


def slice_that_stays(c: RuleContext, x: Any, start: int) -> Terms:
    """The bounds are not moved."""
    out = slice_(c, x, 2, start, sys.maxsize, 1, None)
    c.inference.rewrites.pop(c.node, None)
    return out


def tied_only_without_weights(c: RuleContext, x: Any, other: Any) -> Terms:
    """A product of two activations does not tie them."""
    if c.is_activation(x) and c.is_activation(other):
        return untied_pointwise(c)
    return pointwise(c)


def interleaved_chunks(c: RuleContext, x: Any, chunks: int) -> Any:
    """Halves are taken for even and odd entries."""
    terms = c.terms(x)
    pair = factor(terms[-1], resolve(terms[-1]).size // chunks)  # type: ignore[operator]
    assert pair is not None
    c.block(pair[1], "a test")
    pieces = [[*terms[:-1], pair[0]] for _ in range(chunks)]
    return tuple(pieces)


def tiles_inside(c: RuleContext, x: Any, repeats: list[int]) -> Terms:
    """repeat() taken for repeat_interleave()."""
    terms = c.terms(x)
    return [*terms[:-1], product((terms[-1], c.fixed(repeats[-1])))]


# the nets they are broken on


def gated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    return module(forward, gate=nn.Linear(8, 10), up=nn.Linear(8, 10), down=nn.Linear(10, 5))


def attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, 4, 6).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(out.transpose(1, 2).reshape(b, n, 24))

    return module(
        forward,
        q=nn.Linear(8, 24),
        k=nn.Linear(8, 24),
        v=nn.Linear(8, 24),
        head=nn.Linear(24, 5),
    )


def pooled_heads() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.up(x).view(-1, 7, 4, 6).relu().sum(-1))

    return module(forward, up=nn.Linear(8, 24), head=nn.Linear(4, 5))


def joined() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x).relu()], -1))

    return module(forward, a=nn.Linear(8, 9), b=nn.Linear(8, 9), head=nn.Linear(18, 5))


def grouped() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())

    return module(forward, body=nn.Conv1d(7, 12, 3), head=nn.Conv1d(12, 6, 1, groups=3))


def normed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(forward, stem=nn.Linear(8, 12), norm=nn.LayerNorm(12), head=nn.Linear(12, 5))


def group_normed() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())

    return module(
        forward, stem=nn.Conv1d(7, 16, 1), norm=nn.GroupNorm(4, 16), head=nn.Conv1d(16, 5, 1)
    )


def shares() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).softmax(-1))

    return module(forward, stem=nn.Linear(8, 12), head=nn.Linear(12, 5))


def halves() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1)
        return self.head(a * b.sigmoid())

    return module(forward, both=nn.Linear(8, 20), head=nn.Linear(10, 5))


def tail() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.both(x)
        return self.head(wide[:, :, 12:]) + self.other(wide)

    return module(forward, both=nn.Linear(8, 20), head=nn.Linear(8, 5), other=nn.Linear(20, 5))


def tiled() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.stem(x).repeat(1, 1, 3))

    return module(forward, stem=nn.Linear(8, 6), head=nn.Linear(18, 5))


def normed_queries() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k = (self.norm(part(x)).unsqueeze(1) for part in (self.q, self.k))
        return self.head(F.scaled_dot_product_attention(q, k, self.v(x).unsqueeze(1)).squeeze(1))

    return module(
        forward,
        q=nn.Linear(8, 12),
        k=nn.Linear(8, 12),
        v=nn.Linear(8, 6),
        norm=nn.LayerNorm(12),
        head=nn.Linear(6, 5),
    )


@dataclasses.dataclass(frozen=True)
class Break:
    """A broken rule, the net it is seen on, and the checks that must see it. The other checks
    either pass or cannot run."""

    rule: Rule
    op: str
    net: Callable[[], nn.Module]
    seen_by: frozenset[str]


def breaks(rule: Rule, op: str, net: Callable[[], nn.Module], *seen_by: str) -> Break:
    return Break(rule, f"aten::{op}", net, frozenset(seen_by))


P, Z, R, S = "permutation", "zero mask", "restricted statistics", "structure"
ATTENTION = "scaled_dot_product_attention"
BREAKS = [
    breaks(untied_pointwise, "mul", gated, P, Z, R),
    breaks(untied_attention, ATTENTION, attention, P, Z, R),
    breaks(attention_without_a_pinned_scale, ATTENTION, attention, Z, R),
    breaks(attention_without_a_pinned_scale, ATTENTION, normed_queries, R),
    breaks(column_major_view, "view", pooled_heads, P, Z, R),
    breaks(reversed_cat, "cat", joined, P, Z, R),
    breaks(interleaved_chunks, "chunk", halves, P, Z, R),
    breaks(tiles_inside, "repeat", tiled, P, Z, R),
    breaks(convolution_blind_to_groups, "conv1d", grouped, P, S),
    breaks(untied_layer_norm, "layer_norm", normed, P, S),
    breaks(layer_norm_without_statistics, "layer_norm", normed, Z, R),
    breaks(softmax_without_statistics, "softmax", shares, Z, R),
    breaks(group_norm_without_resizing, "group_norm", group_normed, Z, R),
    breaks(layer_norm_without_resizing, "layer_norm", normed, S),
    breaks(slice_that_stays, "slice", tail, S),
]


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
    assert zero_mask(graph, rewrite(graph, kept), kept, inputs).passed  # blind on these weights
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
