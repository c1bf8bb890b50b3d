"""Arguments and options of wrong types, values and names, at every public entry."""

from __future__ import annotations

import copy
import math
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from refused import X, refused, small

from prunec import compiler, passes
from prunec.compiler import Plan, Result, Target

HALF = Target(params=0.5)


@pytest.fixture(scope="module")
def result() -> Result:
    steps = [passes.MagnitudeScore(), passes.PruneChannels(0.5), passes.SparseToDense()]
    return compiler.PassManager(steps).run(compiler.capture(small(), (X,)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"speedup": math.nan}, ("speedup", "finite", "nan")),
        ({"speedup": math.inf}, ("speedup", "finite", "inf")),
        ({"speedup": 0}, ("speedup", "at least 1")),
        ({"speedup": -1}, ("speedup", "at least 1")),
        ({"speedup": "2"}, ("speedup", "number", "'2'")),
        ({"speedup": True}, ("speedup", "number", "True")),
        ({"speed": 2}, ("'speed'", "speedup")),
        ({"params": 0.5, "macs": 0.5}, ("one aim", "params", "macs")),
        ({}, ("one aim", "none")),
        ({"params": 0.5, "runtime": "zz"}, ("runtime", "onnxruntime", "'zz'")),
        ({"params": 0.5, "batch": "a"}, ("batch", "'a'")),
        ({"params": 0.5, "batch": 1.5}, ("batch", "1.5")),
    ],
)
def test_targets_are_finite_numbers(given: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: Target(**given), *words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"floor": "a"}, ("'floor'", "a number", "'a'")),
        ({"floor": math.nan}, ("'floor'", "a finite number")),
        ({"floor": 2}, ("floor=2", "0 to 1")),
        ({"rounds": 1.5}, ("'rounds'", "a whole number")),
        ({"rounds": 0}, ("rounds=0", "at least 1")),
        ({"recipe": 5}, ("'recipe'", "a text")),
        ({"recipe": "absent.toml"}, ("absent.toml", "check the path")),
        ({"options": 5}, ("'options'", "a table")),
        ({"options": {"distill": 5}}, ("'options'", "a table of tables")),
        ({"options": {"zz": {}}}, ("'zz'", "it uses")),
        ({"options": {"distill": {"stepz": 3}}}, ("'stepz'", "steps")),
        ({"options": {"distill": {"steps": "3"}}}, ("'steps'", "a whole number")),
        ({"callback": 3}, ("'callback'", "a function")),
        ({"target": 2}, ("Target(speedup=2.0)", "not 2")),
        ({"kwargs": 5}, ("'kwargs'", "a table")),
        ({"outputs": 5.5}, ("'outputs'", "5.5")),
        ({"mode": 3}, ("'mode'", "a text")),
        ({"tarjet": 3}, ("'tarjet'", "target")),
        ({"checkpoint": 5}, ("'checkpoint'", "a text")),
    ],
)
def test_arguments_of_compile(given: dict[str, Any], words: tuple[str, ...]) -> None:
    options = {"target": HALF, "measure": False, **given}
    refused(lambda: compiler.compile(small(), (X,), **options), *words)


def test_a_missing_target_is_named() -> None:
    refused(lambda: compiler.compile(small(), (X,)), "'target'", "it takes model")  # type: ignore


@pytest.mark.parametrize("targets", [5, [2], HALF, "1.5"])
def test_targets_of_a_sweep_are_a_list(targets: Any) -> None:
    refused(lambda: compiler.sweep(small(), (X,), targets=targets), "[Target(speedup=1.5)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: passes.PruneChannels(ration=0.5), ("'ration'", "it has ratio")),  # type: ignore
        (lambda: passes.PruneChannels("a"), ("'ratio'", "a number", "'a'")),  # type: ignore
        (lambda: passes.PruneChannels(math.nan), ("'ratio'", "a finite number")),
        (lambda: passes.PruneChannels(0.5, round_to=1.5), ("'round_to'", "whole")),  # type: ignore
        (lambda: passes.PruneHeads(0.5, include=5), ("'include'", "a text")),  # type: ignore
        (lambda: passes.PruneHeads(0.5, exact_only=1), ("'exact_only'", "true")),  # type: ignore
        (lambda: passes.Distill(), ("'train_loader'", "it has")),  # type: ignore
        (lambda: passes.Distill(5), ("train_loader", "DataLoader")),  # type: ignore
        (lambda: passes.Distill([X], learning_rate=math.inf), ("'learning_rate'", "finite")),
        (lambda: passes.DropLayers(ratio="x"), ("'ratio'", "a number")),  # type: ignore
        (lambda: passes.MagnitudeScore(norm="x"), ("'norm'", "whole")),  # type: ignore
        (lambda: passes.SparseToDense(dead=None), ("'dead'", "true or false")),  # type: ignore
        (lambda: compiler.PassManager(5), ("a list of passes", "not 5")),  # type: ignore
        (lambda: compiler.PassManager([5]), ("not a pass", "prunec.passes")),  # type: ignore
        (lambda: compiler.PassManager([], 5), ("'callback'", "a function")),  # type: ignore
    ],
)
def test_options_of_passes(make: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(make, *words)


def test_passes_and_targets_are_copied_and_pickled_as_before() -> None:
    step = copy.deepcopy(passes.Distill([X], epochs=7))
    assert step.epochs == 7
    assert pickle.loads(pickle.dumps(passes.PruneChannels(0.25))).ratio == 0.25
    assert pickle.loads(pickle.dumps(HALF)) == copy.copy(HALF) == HALF


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r, p: r.export_onnx(p), ("is a directory", "model.onnx")),
        (lambda r, p: r.export_onnx(p / "absent" / "a.onnx"), ("create", "absent")),
        (lambda r, p: r.export_onnx(5), ("'path'", "not 5")),
        (lambda r, p: r.export_onnx(p / "a.onnx", opset="a"), ("'opset'", "whole number")),
        (lambda r, p: r.export_onnx(p / "a.onnx", zz=3), ("'zz'", "opset")),
        (lambda r, p: r.quantize_onnx(p), ("is a directory", "model.onnx")),
        (lambda r, p: r.quantize_onnx(p / "a.onnx", mode="z"), ("'dynamic' or 'static'",)),
        (lambda r, p: r.quantize_onnx(p / "a.onnx", calibration=5), ("calibration", "list")),
        (lambda r, p: r.measure("zz"), ("'zz'", "onnxruntime")),
        (lambda r, p: r.measure("torch", "a"), ("'batch'", "whole number")),
        (lambda r, p: r.measure("torch", 0), ("A batch of 0", "1 or more")),
        (lambda r, p: r.measure(zz=3), ("'zz'", "attempts")),
        (lambda r, p: r.save(5), ("'directory'", "not 5")),
        (lambda r, p: r.save(p / "a", tokenizer=5), ("tokenizer is 5", "save_pretrained")),
        (lambda r, p: r.verify("a"), ("'seed'", "whole number")),
        (lambda r, p: r.plan.apply(5), ("nn.Module", "not 5")),
        (lambda r, p: r.plan.remove("zz", [1]), ("'zz'", "graph.explain()")),
        (lambda r, p: r.plan.remove("0:hidden", ["a"]), ("'0:hidden'", "whole numbers")),
        (lambda r, p: r.plan.remove("0:hidden", [99]), ("[99]", "16 entries")),
        (lambda r, p: compiler.load(5), ("'directory'", "not 5")),
        (lambda r, p: compiler.load(p / "absent"), ("no prunec artifact",)),
        (lambda r, p: compiler.PassManager([]).run(small()), ("'graph'", "Graph")),
    ],
)
def test_methods_of_results_and_plans(
    result: Result,
    tmp_path: pathlib.Path,
    call: Callable[[Any, pathlib.Path], Any],
    words: tuple[str, ...],
) -> None:
    before = sorted(tmp_path.iterdir())
    refused(lambda: call(result, tmp_path), *words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["{", "[]", "5", '"plan"', "{}", "[" * 100_000])
def test_what_is_no_plan_says_what_is(text: str) -> None:
    refused(lambda: Plan.from_json(text), "not a plan", "Plan.to_json")


def test_a_plan_of_wrong_parts_is_damaged(result: Result) -> None:
    text = result.plan.to_json().replace('"kept": {', '"kept": 5, "other": {')
    refused(lambda: Plan.from_json('{"version": 2}'), "damaged", "it has no")
    with pytest.raises(compiler.PrunecError, match="damaged"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: compiler.op_rule(5), ("names of ops", "aten::relu")),  # type: ignore
        (lambda: compiler.op_rule(), ("names of ops", "aten::relu")),
        (lambda: compiler.op_rule("relu")(lambda c: None), ("namespace", "aten::relu")),
        (lambda: compiler.op_rule("a::b")(5), ("a::b", "a function")),  # type: ignore
        (lambda: compiler.op_rule("a::b")(lambda: None), ("context",)),
    ],
)
def test_op_rules(make: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(make, *words)
