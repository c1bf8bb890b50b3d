"""One test per structure: which dimensions are found, and that cutting them is exact."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import structures as structures  # fills the table
import torch
import torch.utils._pytree as pytree
from nets import STRUCTURES, captured, found, ids
from tiny_models import IDS, tiny_bert
from torch import Tensor

from prunec.compiler import Graph, capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.difference import relative_error
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.compiler.verify.oracles import (
    permutation,
    restricted_statistics,
    unsupported_statistics,
    zero_mask,
)
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure

Cut = dict[str, list[int]]


def random_cut(graph: Graph, seed: int, share: float) -> Cut:
    generator = torch.Generator().manual_seed(seed)
    kept: Cut = {}
    for d in graph.prunable.values():
        count = max(d.minimum, int(d.size * share), 1)
        kept[d.name] = sorted(torch.randperm(d.size, generator=generator)[:count].tolist())
    return kept


def mixed_cut(graph: Graph, seed: int) -> Cut:
    """Some dimensions whole, the others at any width."""
    chance = random.Random(seed)
    kept: Cut = {}
    for d in graph.prunable.values():
        if chance.random() < 0.5:
            count = chance.randint(max(d.minimum, 1), d.size)
            kept[d.name] = sorted(chance.sample(range(d.size), count))
    return kept


def cuts(graph: Graph) -> Iterator[Cut]:
    """Half of every dimension; as little as may stay; some of some of them."""
    yield random_cut(graph, seed=1, share=0.5)
    yield random_cut(graph, seed=2, share=0.0)
    yield mixed_cut(graph, seed=3)
    yield mixed_cut(graph, seed=4)


def only_exact(graph: Graph, cut: Cut) -> Cut:
    return {name: kept for name, kept in cut.items() if graph.dimensions[name].exact}


def masked_outputs(graph: Graph, plan: Plan) -> list[Any]:
    """What the user's own model, called eagerly, gives with everything outside the slices zero."""
    model, program = graph.source, graph.program
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    args, kwargs = pytree.tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) else x, (program.args, program.kwargs)
    )
    with torch.no_grad():
        try:
            for name, axes in plan.slices().items():
                for axis, kept in axes.items() if name in own else ():
                    gone = torch.ones(own[name].shape[axis], dtype=torch.bool)
                    gone[kept] = False
                    own[name].index_fill_(axis, gone.nonzero().reshape(-1), 0)
            outputs = model(*args, **kwargs)
        finally:  # not by functional_call: that leaves a module with two names changed
            for name, tensor in before.items():
                own[name].copy_(tensor)
    return pytree.tree_leaves(outputs)


@pytest.mark.parametrize("name", STRUCTURES)
def test_half_of_every_dimension_is_cut_exactly(name: str) -> None:
    graph = captured(name)
    assert found(graph) == STRUCTURES[name].finds
    assert graph.inference.failures == {}
    inputs = verification_inputs(Compilation(graph))
    for cut in cuts(graph):
        plan = Plan(kept=cut, graph=graph)
        kept = plan.planned()
        dense = rewrite(graph, kept)
        check_structure(graph, dense, kept)
        assert unsupported_statistics(graph, kept) == []
        assert restricted_statistics(graph, dense, kept, inputs).passed

        plan = Plan(kept=only_exact(graph, cut), graph=graph)
        dense = rewrite(graph, plan.planned())
        assert zero_mask(graph, dense, plan.planned(), inputs).passed
        outputs = ProgramInterpreter(dense)(dense.flat_inputs())
        assert relative_error(pytree.tree_leaves(outputs), masked_outputs(graph, plan)) < 1e-4


@pytest.mark.parametrize("name", [n for n, s in STRUCTURES.items() if s.finds])
def test_permuting_every_dimension_changes_nothing_and_a_wrong_one_shows(name: str) -> None:
    graph = captured(name)
    check = permutation(graph, verification_inputs(Compilation(graph))[:1])
    assert check.passed
    assert check.sensitivity is not None
    assert check.sensitivity > 1e-2


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("slices_and_narrow", {"wide:hidden#2": [0, 3]}),  # x[..., :-10]: the end moves
        ("gpt2_linear", {"attention:head-dim#2": [2]}),  # width 1: a copy becomes a strided view
        ("squeeze_without_dims", {"mix:hidden": [4]}),
        ("strided_slices", {"wide:hidden": [5]}),
    ],
)
def test_a_cut_that_once_went_wrong(name: str, cut: Cut) -> None:
    graph = captured(name)
    kept = Plan(kept=cut, graph=graph).planned()
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    inputs = verification_inputs(Compilation(graph))
    assert restricted_statistics(graph, dense, kept, inputs).passed


@pytest.mark.parametrize("length", [5, 9])
def test_a_cut_holds_at_another_number_of_tokens(length: int) -> None:
    graph = captured("prompt_tokens")
    call = graph.program.flat_inputs((ids(2, length, below=11),), {})
    cut = random_cut(graph, seed=4, share=0.5)
    kept = Plan(kept=cut, graph=graph).planned()
    assert restricted_statistics(graph, rewrite(graph, kept), kept, [call]).passed


def test_a_batch_that_a_view_spells_out_is_static() -> None:
    assert not captured("literal_view_sizes").program.dynamic
    assert captured("qkv_chunked").program.dynamic


def test_a_transformers_encoder_stays_dynamic() -> None:
    """No flag is handed to it that it takes through **kwargs: torch then fixes every axis."""
    assert capture(tiny_bert(), kwargs={"input_ids": IDS}).program.dynamic
