"""Random networks: whatever is grown from the pieces, what is cut from it is exact.

PRUNEC_RANDOM_NETWORKS=5000 examines as many nets, other ones each time.
"""

from __future__ import annotations

import contextlib
import os
import random

import pieces_of_arithmetic as pieces_of_arithmetic
import pieces_of_layers as pieces_of_layers
import pieces_of_rare_ops as pieces_of_rare_ops
import pieces_of_views as pieces_of_views  # these four fill the table of pieces
import pytest
import torch
import torch.utils._pytree as pytree
from grown_nets import PIECES, Choose, Dead, Growth, Piece, grow, stem
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from nets import lively
from test_structures import masked_outputs, only_exact

from prunec.compiler import Graph, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.emit.leaf_modules import emit_graph_module, leaf_specs
from prunec.compiler.errors import VerificationError
from prunec.compiler.inference.rule import RULES, OpRule
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.dead import find_dead
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.backends import capture_error, module_error
from prunec.compiler.verify.difference import relative_error
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.compiler.verify.oracles import (
    Inputs,
    permutation,
    restricted_statistics,
    unsupported_statistics,
    zero_mask,
)
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure

DEFAULT = 20
EXAMPLES = int(os.environ.get("PRUNEC_RANDOM_NETWORKS", DEFAULT))
Cut = dict[str, list[int]]


def examine(choose: Choose, pieces: int) -> Graph:
    """Grow a net, capture it, and check it whole and cut twice. Raises Dead for one whose values
    are not finite."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    text: list[str] = []
    try:
        return _examine(choose, pieces, text)
    except Exception as error:
        error.add_note("\n".join(text))
        raise
    finally:
        torch.set_default_dtype(before)


def _examine(choose: Choose, pieces: int, text: list[str]) -> Graph:
    torch.manual_seed(0)
    net, inputs, made_of = grow(choose, pieces)
    text += made_of
    lively(net)
    with torch.no_grad():
        outputs = pytree.tree_leaves(net(*inputs))
    if not all(bool(torch.isfinite(x).all() and x.abs().max() < 1e6) for x in outputs):
        raise Dead
    graph = capture(net, inputs)
    assert graph.inference.failures == {}
    calls = verification_inputs(Compilation(graph))
    for check in (capture_error(graph, calls), permutation(graph, calls[:1])):
        assert check.passed, check
    for share in (None, 0):
        cut = _cut(graph, choose, share)
        _check_all(graph, cut, calls)
        _check_exact(graph, Plan(kept=only_exact(graph, cut), graph=graph), calls)
    return graph


def _cut(graph: Graph, choose: Choose, share: int | None) -> Cut:
    """Any width of some dimensions; `share` 0: as little as may stay of all."""
    kept: Cut = {}
    for d in graph.prunable.values():
        low = max(d.minimum, 1)
        count = low if share == 0 else low + choose(d.size - low + 1)
        if share == 0 or choose(4):
            kept[d.name] = sorted(random.Random(f"{d.name}{count}").sample(range(d.size), count))
    return kept


def _check_all(graph: Graph, cut: Cut, calls: Inputs) -> None:
    kept = Plan(kept=cut, graph=graph).planned()
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    if not unsupported_statistics(graph, kept):
        check = restricted_statistics(graph, dense, kept, calls)
        assert check.passed, check


def _check_exact(graph: Graph, plan: Plan, calls: Inputs) -> None:
    """The masked program, the user's own masked model, the graph module; dead entries too."""
    kept = plan.planned()
    dense = rewrite(graph, kept)
    check = zero_mask(graph, dense, kept, calls)
    assert check.passed, check
    outputs = ProgramInterpreter(dense)(dense.flat_inputs())
    error = relative_error(outputs, masked_outputs(graph, plan))
    assert error < 1e-4, f"the dense program is not the masked model: {error}"
    module = emit_graph_module(dense, leaf_specs(graph.source, graph.program))
    error = module_error(dense, module, [(graph.program.args, graph.program.kwargs)])
    assert error < 1e-4, f"the graph module is not the dense program: {error}"
    dead = find_dead(graph, kept)
    names = {d.var: d.name for d in graph.prunable.values()}
    plan.dead = {names[var]: gone.tolist() for var, gone in dead.removed.items()}
    smaller = rewrite(graph, plan.combined(), dead.folds)
    check_structure(graph, smaller, plan.combined())
    check = zero_mask(graph, smaller, kept, calls)
    assert check.passed, f"without dead entries: {check}"


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == DEFAULT,
    deadline=None,
    database=None,
    phases=[Phase.generate] if EXAMPLES == DEFAULT else list(Phase),  # to shrink takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_what_is_cut_from_a_random_network_is_exact(data: st.DataObject) -> None:
    # a choice of piece is uniform; hypothesis alone would draw the first ones most of the time
    order = random.Random(data.draw(st.integers(0, 10**6)))
    try:
        examine(lambda n: (data.draw(st.integers(0, n - 1)) + order.randrange(n)) % n, pieces=8)
    except Dead:
        reject()


@pytest.mark.parametrize("piece", PIECES, ids=lambda p: p.__name__)
def test_every_piece_fits_somewhere(piece: Piece) -> None:
    for seed in range(500):
        growth = Growth(random.Random(seed).randrange)
        stem(growth)
        try:
            for part in (*random.Random(seed).choices(PIECES, k=2), piece):
                growth.only(part)
        except Dead:
            continue
        return
    pytest.fail(f"{piece.__name__} was never built")


@pytest.mark.parametrize("op", ["aten::mul", "aten::cat", "aten::linear", "aten::transpose"])
def test_a_broken_rule_is_found_by_some_network(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result's axes are dimensions of their own, tied to nothing."""

    def untied(c, x):  # type: ignore[no-untyped-def]
        return [c.fixed(c.out_shape[0]), *(c.var(n) for n in c.out_shape[1:])]

    monkeypatch.setitem(RULES, op, OpRule(op, untied, ("x",)))
    with pytest.raises((AssertionError, VerificationError)):
        _examine_many(30)


def _examine_many(count: int) -> None:
    for seed in range(count):
        with contextlib.suppress(Dead):
            examine(random.Random(seed).randrange, pieces=4)
