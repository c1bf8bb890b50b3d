"""What a result reports, proves once more and says of itself."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from compiled import compress, halved, images, small_bert
from tiny_models import (
    IMAGES,
    BakedSize,
    parameters,
    small_cnn,
    timed_by_size,
)
from torch import nn

from prunec import compiler
from prunec.compiler.errors import (
    MeasureError,
    VerificationError,
)


def test_report_round_trips_through_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    result = compress(measure=True, train=images(2), options={"distill": {"steps": 2}})
    data = result.report.to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["after"]["params"] == parameters(result.model)
    assert data["latency"][0]["ratio"] == pytest.approx(4085 / parameters(result.model))
    assert data["target"] == "width=0.5"
    assert {d["state"] for d in data["dimensions"]} == {"pruned", "blocked"}
    assert [p["name"] for p in data["passes"]][-1] == "distill"


def test_printed_report_states_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.compiler.result.compare_modules", timed_by_size)
    result = compress(measure=True, evaluate=lambda _: 0.875)
    text = str(result.report)
    small = parameters(result.model)
    facts = (
        "SmallCnn",
        "width=0.5",
        "4,085",
        f"{small:,}",
        f"{small / 4085:.1%}",
        f"{4085 / small:.2f}x",
        "0.8750",
        "zero mask",
        "permutation",
        "2 dimensions pruned, 0 kept, 4 blocked; emitted as SmallCnn",
        "no data was given to train on",
    )
    assert [fact for fact in facts if fact not in text] == []


def test_every_dimension_has_its_state_and_reason() -> None:
    result = compress(options={"allocate-widths": {"exclude": "first*"}})
    rows = {row.name: row for row in result.report.dimensions}
    assert len(rows) == len(compiler.capture(small_cnn(), (IMAGES,)).dimensions)
    states = {name.split(":")[0]: row.state for name, row in rows.items() if row.before > 15}
    assert states == {"first": "kept", "second": "pruned"}
    assert all(row.reason for row in rows.values())
    blocked = [row.reason for row in rows.values() if row.state == "blocked"]
    assert any("output" in reason for reason in blocked)


def test_note_on_entries_that_stay_leaves_out_those_that_were_planned() -> None:
    notes = small_bert(0.4).report.notes
    assert [note for note in notes if "zero entries stay" in note] == []


def test_graph_back_end_is_reported_with_its_reason() -> None:
    result = compress(BakedSize(), torch.randn(4, 8))
    assert result.report.emitted == "a graph module"
    assert result.model is result.graph_module
    assert any("module back end does not hold" in note for note in result.report.notes)


def test_verify_passes_on_new_inputs_also_in_train_mode() -> None:
    result = compress(small_cnn().train())
    verified = result.verify(seed=7)
    assert verified.passed
    assert verified.masked_error is not None
    assert verified.masked_error < 1e-4
    assert verified.module_error is not None
    assert {c.name for c in verified.checks} >= {"zero mask", "permutation", "module == program"}
    assert result.model.drop.training


def test_verify_fails_when_the_module_differs_from_the_graph() -> None:
    result = compress()
    result.model.head.bias = nn.Parameter(result.model.head.bias + 1)
    with pytest.raises(VerificationError, match="the module differs"):
        result.verify()


def test_verify_fails_when_the_original_was_changed_since() -> None:
    model = small_cnn()
    result = compress(model)
    result.plan.dead = {name: [kept[0]] for name, kept in result.plan.kept.items()}
    with pytest.raises(VerificationError):
        result.verify()


def test_result_says_what_it_is() -> None:
    assert repr(halved()).startswith("Result(SmallCnn: 4,085 -> ")


def test_measure_error_of_an_unknown_runtime_names_the_runtimes() -> None:
    with pytest.raises(MeasureError, match="torch, compile, onnxruntime"):
        halved().measure("tensorrt")


def test_result_is_independent_of_the_original() -> None:
    model = small_cnn()
    small = compress(model).model
    expected = small(IMAGES).detach().clone()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(small(IMAGES), expected)
    assert torch.equal(copy.deepcopy(small)(IMAGES), expected)


def test_explain_lists_all_members_when_asked() -> None:
    graph = compiler.capture(small_cnn(), (IMAGES,))
    assert "norm.running_var[0]" not in graph.explain()
    assert "+" in graph.explain()
    listed = graph.explain(members=True)
    for name in ("first.weight[0]", "norm.running_var[0]", "second.weight[1]"):
        assert name in listed


def test_what_is_kept_of_a_quality_below_zero() -> None:
    from prunec.compiler.report import _kept

    assert _kept(-1.0, -1.1) == "90.0%"
    assert _kept(-4.0, -3.8) == "105.0%"
    assert _kept(0.8, 0.6) == "75.0%"
    assert _kept(0.0, 0.6) == "-"
