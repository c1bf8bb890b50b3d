"""Plans: what may be removed, what it comes to in tensors, and the way to JSON and back."""

from __future__ import annotations

import json

import pytest
import structures as structures  # fills the table
import torch
from nets import IDS, IMAGE, STRUCTURES, TOKENS, captured
from torch import nn

from prunec import passes
from prunec.compiler import PassManager, Plan, capture
from prunec.compiler.errors import PlanError


def plan_for(name: str, **fields: dict[str, list[int]]) -> Plan:
    return Plan(model=name, graph=captured(name), **fields)  # type: ignore[arg-type]


def test_removing_says_how_many_entries_are_new() -> None:
    plan = plan_for("swiglu")
    assert plan.remove("gate:hidden", [1, 3]) == 2
    assert plan.remove("gate:hidden", torch.tensor([3, 5])) == 1
    assert plan.kept == {"gate:hidden": [0, 2, 4, 6, 7, 8, 9]}


def test_removing_nothing_plans_nothing() -> None:
    plan = plan_for("swiglu")
    assert plan.remove("gate:hidden", []) == 0
    assert plan.kept == {}


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("gate:width", [0], "there is no dimension 'gate:width'"),
        ("down.weight[0]", [0], "is blocked: model output"),
        ("gate:hidden", [10], "has 10 entries; .10. is out of range"),
        ("gate:hidden", [-1], "out of range"),
        ("gate:hidden", range(10), "must keep at least 1 of its 10 entries"),
    ],
)
def test_what_cannot_be_removed_is_refused(name: str, entries: list[int], said: str) -> None:
    plan = plan_for("swiglu")
    with pytest.raises(PlanError, match=said):
        plan.remove(name, entries)
    assert plan.kept == {}


def test_a_dimension_keeps_its_minimum() -> None:
    plan = plan_for("statistics_by_hand")
    a = plan.graph.dimensions["a:hidden"]  # type: ignore[union-attr]
    assert a.minimum == 2  # one entry has no variance
    with pytest.raises(PlanError, match="at least 2"):
        plan.remove("a:hidden", range(9))  # type: ignore[arg-type]
    assert plan.remove("a:hidden", range(8)) == 8  # type: ignore[arg-type]


def test_slices_are_kept_indices_per_tensor_and_axis() -> None:
    plan = plan_for("swiglu", kept={"gate:hidden": [0, 4, 9]}, dead={"gate:hidden": [4]})
    table = {
        name: {axis: kept.tolist() for axis, kept in axes.items()}
        for name, axes in plan.slices().items()
    }
    assert table == {
        "gate.weight": {0: [0, 9]},
        "gate.bias": {0: [0, 9]},
        "up.weight": {0: [0, 9]},
        "up.bias": {0: [0, 9]},
        "down.weight": {1: [0, 9]},
    }


def test_slices_spell_out_products_and_repeats() -> None:
    """2 key heads, 3 query heads each, width 8: keeping the second key head and one query head."""
    plan = plan_for("grouped_queries_repeated", kept={"q:kv-head": [1], "q:query-group": [2]})
    slices = plan.slices()
    assert slices["k.weight"][0].tolist() == list(range(8, 16))
    assert slices["q.weight"][0].tolist() == list(range(40, 48))
    assert slices["head.weight"][1].tolist() == list(range(40, 48))
    assert "inv_freq" not in slices


def test_rotary_frequencies_are_cut_with_both_halves_of_the_head() -> None:
    plan = plan_for("grouped_queries_repeated", kept={"q:head-dim": [0, 3]})
    slices = plan.slices()
    assert slices["inv_freq"][0].tolist() == [0, 3]
    assert slices["k.weight"][0].tolist() == [0, 3, 4, 7, 8, 11, 12, 15]


def test_tied_names_are_all_listed() -> None:
    plan = plan_for("tied_embeddings", kept={"mix:hidden": [2, 5]})
    slices, shapes = plan.slices(), plan.shapes()
    for name in ("embed.weight", "decode.weight"):
        assert slices[name][1].tolist() == [2, 5]
        assert shapes[name] == [11, 12]


def test_json_gives_an_equal_plan_back() -> None:
    plan = plan_for("swiglu", kept={"gate:hidden": [0, 4, 9]}, dead={"gate:hidden": [4]})
    plan.backend = "module"
    plan.attributes = {"gate": {"out_features": [10, 2]}}
    plan.constants = {"down.bias": torch.tensor([0.1, -2.5, 3e-7, 0.0, 1.0])}
    loaded = Plan.from_json(plan.to_json())
    assert loaded.graph is None
    assert loaded == plan
    assert loaded.to_json() == plan.to_json()
    assert loaded.kept == plan.kept
    assert loaded.attributes == plan.attributes
    assert torch.equal(loaded.constants["down.bias"], plan.constants["down.bias"])
    assert loaded.slices().keys() == plan.slices().keys()
    assert loaded.shapes() == plan.shapes()


def test_plans_that_remove_different_entries_are_not_equal() -> None:
    plan = plan_for("swiglu", kept={"gate:hidden": [0, 4]})
    assert plan != plan_for("swiglu", kept={"gate:hidden": [0, 5]})
    assert plan != "swiglu"


def test_a_loaded_plan_has_no_graph_to_plan_on() -> None:
    plan = Plan.from_json(plan_for("swiglu", kept={"gate:hidden": [0, 4]}).to_json())
    with pytest.raises(PlanError, match="without a graph"):
        plan.remove("gate:hidden", [4])


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"version": 1}', "null", "3"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_plan_of_another_version_is_refused() -> None:
    data = json.loads(plan_for("swiglu", kept={"gate:hidden": [0]}).to_json())
    data["version"] = 99
    with pytest.raises(PlanError, match="version 99"):
        Plan.from_json(json.dumps(data))


def test_a_model_of_other_shapes_is_refused() -> None:
    plan = plan_for("swiglu", kept={"gate:hidden": [0, 4]})
    plan.backend = "module"
    with pytest.raises(PlanError, match=r"cuts 'gate.weight', which Linear does not have"):
        plan.apply(nn.Linear(8, 5))
    smaller = nn.ModuleDict({n: nn.Linear(8, 9) for n in ("gate", "up", "down")})
    with pytest.raises(PlanError, match=r"'gate.weight' of shape \[10, 8\]"):
        plan.apply(smaller)


@pytest.mark.parametrize("name", ["swiglu", "tied_embeddings"])
def test_a_stored_plan_carries_out_the_same_on_a_fresh_model(name: str) -> None:
    graph = captured(name)
    call = (IDS,) if name == "tied_embeddings" else (TOKENS,)
    pipeline = [passes.MagnitudeScore(), passes.PruneChannels(ratio=0.5), passes.SparseToDense()]
    result = PassManager(pipeline).run(graph)
    again = Plan.from_json(result.plan.to_json()).apply(graph.source, call)
    with torch.no_grad():
        torch.testing.assert_close(again(*call), result.model(*call), rtol=1e-5, atol=1e-5)
    assert len(list(again.parameters())) == len(list(result.model.parameters()))
    assert capture(again, call).dimensions.keys() == capture(result.model, call).dimensions.keys()


def test_a_plan_fits_a_fresh_model_whose_weights_autograd_makes() -> None:
    """The hook of weight_norm leaves a weight that deepcopy refuses on a model that never ran."""
    graph = captured("weight_norm_by_hook")
    result = PassManager(
        [
            passes.MagnitudeScore(),
            passes.PruneChannels(ratio=0.5),
            passes.SparseToDense(),
        ]
    ).run(graph)
    fresh = STRUCTURES["weight_norm_by_hook"].build()
    assert not fresh.a.weight.is_leaf
    fresh.load_state_dict(graph.source.state_dict())
    small = result.plan.apply(fresh)
    assert type(small) is type(fresh)
    assert torch.allclose(small(IMAGE), result.model(IMAGE), atol=1e-6)
    assert fresh.a.weight_v.shape[0] == 6
