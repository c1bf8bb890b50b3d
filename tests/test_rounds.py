"""A compressed model is a model: it is captured and compressed again, and once more."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import structures as structures  # fills the table
import torch
import torch.utils._pytree as pytree
from nets import STRUCTURES, lively
from tiny_models import IDS, IMAGES, SmallCnn, small_cnn, tiny_llama
from torch import nn

from prunec import compiler
from prunec.compiler import Graph, PassManager, Result, capture
from prunec.passes import MagnitudeScore, PruneChannels, SparseToDense

Form = Callable[[Result, int], nn.Module]
AS_MODULE = [
    "residual",
    "dense_block",
    "depthwise_with_multiplier",
    "group_norm_residual",
    "module_called_twice",
    "tied_embeddings",
    "swiglu",
    "model_output",
]
AS_GRAPH = [
    "residual",
    "channel_shuffle",
    "in_place_operations",
    "shifted_windows",
    "tied_embeddings",
    "lstm_in_two_directions",
    "several_inputs_and_outputs",
]


def kinds(graph: Graph) -> Counter[Any]:
    return Counter((d.kind, d.exact) for d in graph.prunable.values() if d.size > 2)


def shrunk(graph: Graph, include: str | None) -> Result:
    steps = [MagnitudeScore(), PruneChannels(0.25, include=include), SparseToDense(dead=False)]
    return PassManager(steps).run(graph)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_rounds(model: nn.Module, call: Any, form: Form, include: str | None = None) -> None:
    """Twice: the same names, the same kinds of dimensions, both modes, the same shapes out."""
    args, kwargs = call
    model.train()
    keys, before = set(model.state_dict()), None
    for turn in range(2):
        graph = capture(model, args, kwargs=kwargs)
        assert before is None or set(kinds(graph)) <= set(before)
        before = kinds(graph)
        smaller = form(shrunk(graph, include), turn)
        assert size(smaller) < size(model)
        assert set(smaller.state_dict()) == keys
        smaller.train()
        assert all(m.training for m in smaller.modules())
        with torch.no_grad():
            expected = pytree.tree_leaves(model.eval()(*args, **kwargs))
            outputs = pytree.tree_leaves(smaller.eval()(*args, **kwargs))
        assert [x.shape for x in outputs] == [x.shape for x in expected]
        model = smaller
    assert before


def built(name: str) -> tuple[nn.Module, Any]:
    entry = STRUCTURES[name]
    torch.manual_seed(0)
    model = entry.build()
    lively(model)
    return model, (entry.args, entry.kwargs)


@pytest.mark.parametrize("name", AS_MODULE)
def test_a_compressed_module_is_compressed_again(name: str) -> None:
    model, call = built(name)

    def module(result: Result, turn: int) -> nn.Module:
        assert type(result.model) is type(model)
        return result.model

    check_rounds(model, call, module)


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_GRAPH)
def test_a_compressed_graph_is_compressed_again(name: str, tmp_path: pathlib.Path) -> None:
    """The second time from an artifact."""

    def graph(result: Result, turn: int) -> nn.Module:
        assert result.graph_module is not None
        if turn == 0:
            return result.graph_module
        result.save(tmp_path)
        return compiler.load(tmp_path, graph=True)

    check_rounds(*built(name), graph, include="*")


@pytest.mark.slow
def test_a_graph_loaded_from_an_artifact_is_compressed_again(tmp_path: pathlib.Path) -> None:
    def loaded(result: Result, turn: int) -> nn.Module:
        result.save(tmp_path / str(turn))
        return compiler.load(tmp_path / str(turn), graph=True)

    check_rounds(*built("transformer_encoder_layer"), loaded, include="*")


def test_a_class_loaded_from_an_artifact_is_compressed_again(tmp_path: pathlib.Path) -> None:
    fresh = small_cnn()

    def loaded(result: Result, turn: int) -> nn.Module:
        result.save(tmp_path / str(turn))
        model = compiler.load(tmp_path / str(turn), model=fresh if turn == 0 else result.source)
        assert type(model) is SmallCnn
        return model

    check_rounds(small_cnn(), ((IMAGES,), {}), loaded)


@pytest.mark.slow
def test_a_loaded_transformers_model_is_compressed_again(tmp_path: pathlib.Path) -> None:
    model = tiny_llama()

    def loaded(result: Result, turn: int) -> nn.Module:
        result.save(tmp_path)
        smaller = compiler.load(tmp_path) if turn == 0 else result.model
        assert type(smaller) is type(model)
        return smaller

    check_rounds(model, ((), {"input_ids": IDS, "use_cache": False}), loaded)
