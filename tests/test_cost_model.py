"""Costs by widths: counts that agree with the count, times that are kept under the right key."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import IMAGES, op_times_by_size, small_cnn, tiny_bert
from torch import nn

from prunec import compiler
from prunec.compiler.cost_model.bound import what_bounds
from prunec.compiler.cost_model.counted import counted
from prunec.compiler.cost_model.curve import Curve
from prunec.compiler.cost_model.design import assignments
from prunec.compiler.cost_model.measured import OpTimes
from prunec.compiler.cost_model.stepping import Stepper
from prunec.compiler.cost_model.table import CostTable
from prunec.compiler.inference.graph import Graph
from prunec.compiler.ir.terms import Var
from prunec.compiler.measure.cost import cost
from prunec.compiler.measure.environment import describe


@pytest.fixture(scope="module")
def cnn_graph() -> Graph:
    return compiler.capture(small_cnn(), (IMAGES,))


def floors(graph: Graph, share: float) -> dict[Var, int]:
    return {
        d.var: max(1, round(d.size * share)) for d in graph.prunable.values() if d.var is not None
    }


@pytest.mark.parametrize("unit", ["params", "bytes", "macs"])
@pytest.mark.parametrize("build", ["cnn", "bert"])
def test_counted_costs_agree_with_the_count(unit: str, build: str, cnn_graph: Graph) -> None:
    graph = cnn_graph
    if build == "bert":
        ids = torch.zeros(2, 7, dtype=torch.int64)
        graph = compiler.capture(tiny_bert(), kwargs={"input_ids": ids})
    model = counted(graph, unit, floors(graph, 1.0))
    batch = 2 if unit == "macs" else 1
    for share in (1.0, 0.6, 0.25):
        sizes = floors(graph, share)
        assert model.total(sizes) // batch == getattr(cost(graph, sizes), unit)


def test_orthogonal_runs_show_every_pair_of_levels() -> None:
    a, b, c, d = (Var(64) for _ in range(4))
    lowest = dict.fromkeys((a, b, c, d), 3)
    runs = assignments(lowest, [frozenset({a, b}), frozenset({b, c}), frozenset({a, c, d})])
    assert len(runs) == 25
    for one, other in ((a, b), (b, c), (a, c), (a, d), (c, d)):
        assert len({(run[one], run[other]) for run in runs}) == 25
    alone = assignments(lowest, [frozenset({v}) for v in lowest])
    assert len(alone) < 10
    assert all(len({run[v] for run in alone}) == len(alone) for v in lowest)
    assert {run[a] for run in alone} >= {3, 64}


def test_a_curve_is_drawn_through_its_grid_and_exact_where_it_was_refined() -> None:
    curve = Curve()
    for x in (2.0, 4.0, 8.0):
        for y in (1.0, 8.0):
            curve.add((x, y), 3 + 2 * x * y, grid=True)
    assert curve.at((6.0, 4.5)) == pytest.approx(3 + 2 * 6 * 4.5)
    assert curve.at((99.0, 8.0)) == pytest.approx(3 + 2 * 8 * 8)
    curve.add((6.0, 4.5), 500.0)
    assert curve.at((6.0, 4.5)) == 500
    assert curve.at((6.0, 4.0)) == pytest.approx(3 + 2 * 6 * 4)


def test_noise_on_the_grid_does_not_make_a_smaller_op_slower() -> None:
    curve = Curve()
    for x, ms in ((1.0, 1.0), (2.0, 5.0), (3.0, 4.0), (4.0, 9.0)):
        curve.add((x,), ms, grid=True)
    drawn = [curve.at((x,)) for x in np.linspace(1, 4, 13)]
    assert drawn == sorted(drawn)
    assert curve.at((4.0,)) == 9


def test_points_off_a_grid_are_fitted() -> None:
    curve = Curve()
    for x, y in ((1.0, 2.0), (2.0, 7.0), (5.0, 3.0), (8.0, 8.0), (3.0, 3.0)):
        curve.add((x, y), 1 + 0.5 * x * y, grid=True)
    assert curve.at((4.0, 6.0)) == pytest.approx(13, rel=0.02)


@pytest.fixture
def facts() -> dict[str, object]:
    return describe("cpu", torch.float32)


def test_times_are_kept_and_found_again(
    facts: dict[str, object], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    first = CostTable(facts, "torch")
    first.put("linear(8)", 1.5)
    first.save()
    again = CostTable(facts, "torch")
    assert again.get("linear(8)") == 1.5
    again.put("linear(9)", 2.5)
    again.save()
    first.put("linear(7)", 0.5)
    first.save()  # keeps what the other wrote since
    assert len(CostTable(facts, "torch")) == 3
    assert [p.name for p in tmp_path.iterdir()] == [f"op-times-{first.key}.json"]
    monkeypatch.setenv("PRUNEC_CACHE", "")
    assert CostTable(facts, "torch").path is None


@pytest.mark.parametrize(
    "change",
    [
        {"device_name": "another"},
        {"dtype": "bfloat16"},
        {"threads": 64},
        {"torch": "0.0"},
        {"driver": 12040},
        {"cudnn": 90000},
        {"tf32": True},
    ],
)
def test_another_device_driver_version_or_dtype_is_another_key(
    facts: dict[str, object], change: dict[str, object]
) -> None:
    assert CostTable(facts | change, "torch").key != CostTable(facts, "torch").key


def test_keys_follow_the_runtime_and_its_version_alone(facts: dict[str, object]) -> None:
    newer = facts | {"onnxruntime": "99.0", "load": 5.0, "python": "9.9"}
    assert CostTable(newer, "torch").key == CostTable(facts, "torch").key
    assert CostTable(newer, "onnxruntime").key != CostTable(facts, "onnxruntime").key
    assert CostTable(facts, "onnxruntime").key != CostTable(facts, "torch").key


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1, "times": {"a": "fast"}}', '{"version": 1, "times": {"a": -1}}'],
)
def test_a_damaged_file_is_measured_again_with_a_note(
    text: str, facts: dict[str, object], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    path = CostTable(facts, "torch").path
    assert path is not None
    path.write_text(text)
    table = CostTable(facts, "torch")
    assert len(table) == 0
    assert "cannot be read" in table.notes[0]
    table.put("a", 1.0)
    table.save()
    assert json.loads(path.read_text())["times"] == {"a": 1.0}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Op times by size; the list grows with every run of a model."""
    runs: list[int] = []

    def times(stepper: Stepper, of):
        runs.append(1)
        return op_times_by_size(stepper, of)

    monkeypatch.setattr(Stepper, "times", times)
    return runs


def test_ops_are_measured_once_for_each_signature(
    cnn_graph: Graph, counting: list[int], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    lowest = floors(cnn_graph, 0.1)
    times = OpTimes(cnn_graph, lowest)
    full = times.model().total()
    weights = sum(p.numel() for p in small_cnn().parameters())
    assert full == pytest.approx(1e-3 * weights, rel=0.1)
    half = floors(cnn_graph, 0.5)
    assert times.model().total(half) == pytest.approx(1e-3 * cost(cnn_graph, half).params, rel=0.15)
    assert times.refine(floors(cnn_graph, 0.7))
    assert not times.refine(floors(cnn_graph, 0.7))
    counting.clear()
    assert OpTimes(cnn_graph, lowest).model().total() == full
    assert not counting  # all of it from disk


def test_onnx_ops_are_timed_and_the_rest_counts_by_elements(cnn_graph: Graph) -> None:
    times = OpTimes(cnn_graph, floors(cnn_graph, 0.1), runtime="onnxruntime")
    timed = {times.nodes[name].target for name in times.timed}
    assert timed == {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
    assert times.counted
    assert times.model().total() > 0
    bare, whole = times.model().total(), times.model(per_element=1.0).total()
    assert whole == pytest.approx(bare + times.elements())


def test_stepping_gives_what_the_model_gives() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = compiler.capture(model, (torch.randn(3, 6),))
    stepper = Stepper(graph.program, graph.program.flat_inputs())
    signatures = [step.signature for step in stepper.steps()]
    assert signatures[0].startswith("aten.linear.default(float32[3,6],float32[4,6],float32[4]")
    times = stepper.times(stepper.calls)
    assert len(times) == 3
    assert all(ms > 0 for ms in times.values())


def test_ops_that_width_does_not_speed_up_are_named(
    cnn_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", "")
    monkeypatch.setattr(Stepper, "times", lambda _, of: dict.fromkeys(of, 0.25))
    text = what_bounds(OpTimes(cnn_graph, floors(cnn_graph, 0.1)), 0.8)
    assert "80% of the time stays" in text
    assert "conv2d 0.50 ms" in text
    assert "larger batch" in text


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"x"', "[" * 100_000, '{"version": 1}', '{"version": 1, "times": 3}',
        '{"version": 1, "times": {"a": NaN}}', '{"version": 1, "times": {"a": -1}}',
        '{"version": 1, "times": {"a": "x"}}', '{"version": 1, "times": {"a": 1%s}}' % ("0" * 400),
        b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_a_damaged_cache_is_replaced(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    path = CostTable({}, "torch").path
    assert path is not None
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table = CostTable({}, "torch")
    assert (len(table), len(table.notes)) == (0, 1)
    table.put("a", 1.0)
    table.save()
    assert CostTable({}, "torch").get("a") == 1.0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_cache_that_is_a_directory_is_left_and_noted(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    path = CostTable({}, "torch").path
    assert path is not None
    path.mkdir()
    table = CostTable({}, "torch")
    table.put("a", 1.0)
    table.save()
    assert "could not be kept" in table.notes[-1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no scratch file
