"""graph.json: rows whose operators, arguments, names and sizes no captured model has."""

# ruff: noqa: E501, RUF001  (tables of attacks)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fork_server import SAME
from hostile.attack import RAN, REFUSED, Attack, Forgery, Range
from json_places import Raw

GRAPH = "graph.json"
OPERATORS = (
    "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.open", "operator.attrgetter",
    "operator.methodcaller", "operator.setitem", "math.factorial", "torch.load", "torch.hub.load",
    "torch.ops.load_library", "torch.sym_sqrt.__globals__", "os.system", "posix.system",
    "aten.save.default", "aten.from_file.default", "aten._print.default", "aten.manual_seed.default",
    "aten.set_.source_Tensor", "aten.set_.source_Storage_storage_offset", "aten.record_stream.default",
    "aten._unsafe_masked_index.default", "aten._unsafe_index.Tensor", "aten.__class__.__init__",
    "aten.relu.__call__", "aten.relu._op", "aten.relu", "aten", "", ".", "..", "aten..default",
    "aten.relu.default.default", "aten.relu.default\nprunec_canary()", "aten::relu", "prim.device.default",
    "prims.nothing.default", "quantized.linear_unpack.default", "image.read_file.default",
    "torchvision.read_file.default", "transformers.grouped_mm_fallback_backward.default",
    "transformers.utils.hub", "profiler._record_function_enter.default", "inductor._alloc_from_pool.default",
    "rpc.init.default", "c10d.send.default", "higher_order.with_effects", "higher_order.run_const_graph",
    "higher_order.call_torchbind", "higher_order.triton_kernel_wrapper_mutation", "higher_order.flex_attention",
    "higher_order.__class__", "ａten.relu.default", "aten.relu.default\x00", "x" * 100_000, RAN,
)  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "text": RAN,
    "text of dunders": "__import__('os')",
    "a path": "/etc/passwd",
    "a foreign object": {"foreign": 0},
    "a reference ahead": {"node": 10_000},
    "a reference back": {"node": -1},
    "a reference to itself": {"node": True},
    "a reference by name": {"node": RAN},
    "a dtype of no table": {"dtype": "load"},
    "a dtype of dunders": {"dtype": "__class__"},
    "a layout of no table": {"layout": "hub"},
    "a memory format of no table": {"memory_format": "_C"},
    "a device of code": {"device": RAN},
    "an unhashable kind": {"tuple": {"x": 1}},
    "two kinds": {"tuple": [], "list": []},
    "no kind": {},
    "a slice of two": {"slice": [0, 1]},
    "a complex of words": {"complex": ["x", "y"]},
    "a dictionary of dunders": {"dict": [["__class__", 1]]},
    "a dictionary of code": {"dict": [["a, b: prunec_canary()", 1]]},
    "a dictionary of keywords": {"dict": [["lambda", 1]]},
    "a float that is none": {"float": RAN},
    "a huge integer": 10**30,
    "a number of digits": Raw("9" * 5000),
    "an infinity": Raw("1e999"),
    "deep lists": Raw("[" * 5_000 + "]" * 5_000),
    "deep tuples": Raw('{"tuple":[' * 40 + "]}" * 40),
    "null": None,
    "ellipsis of code": {"ellipsis": RAN},
}
SIZES: dict[str, tuple[str, list[Any]]] = {
    "zeros": ("aten.zeros.default", [[10**6, 10**6]]),
    "ones of one axis": ("aten.ones.default", [[2**62]]),
    "zeros of overflow": ("aten.zeros.default", [[2**32, 2**32]]),
    "zeros of many axes": ("aten.zeros.default", [[2] * 60]),
    "zeros of negative axes": ("aten.zeros.default", [[-1, 10**6]]),
    "full": ("aten.full.default", [[10**12], 1.0]),
    "arange": ("aten.arange.default", [10**13]),
    "arange of small steps": ("aten.arange.start_step", [0, 1, 1e-13]),
    "linspace": ("aten.linspace.default", [0, 1, 10**13]),
    "eye": ("aten.eye.default", [10**7]),
    "random numbers": ("aten.randn.default", [[10**6, 10**6]]),
    "a permutation": ("aten.randperm.default", [10**12]),
    "indices of a triangle": ("aten.tril_indices.default", [10**7, 10**7]),
    "a window": ("aten.hann_window.default", [10**13]),
    "powers of powers": ("operator.pow", [9, 10**9]),
    "a huge shift": ("operator.lshift", [1, 10**12]),
    "a huge product": ("operator.mul", [2**62, 2**62]),
}


def graph(change: Callable[[dict[str, Any]], object]):
    def forge(forgery: Forgery) -> None:
        document = forgery.read(GRAPH)
        change(document)
        forgery.write(GRAPH, document)

    return forge


def calls(document: dict[str, Any]) -> list[list[Any]]:
    return [row for row in document["nodes"] if row[0] == "call"]


def called(name: Any, *args: Any):
    """Some call is one of another operator, with its own arguments unless others are given."""

    def change(document: dict[str, Any]) -> None:
        row = calls(document)[len(calls(document)) // 2]
        row[1:] = [name, list(args) if args else row[2], {"dict": []} if args else row[3]]

    return graph(change)


def argument(value: Any):
    return graph(lambda d: calls(d)[0][2].__setitem__(0, value))


def keyword(name: str):
    return graph(lambda d: calls(d)[0].__setitem__(3, {"dict": [[name, 1]]}))


def layer(**changes: Any):
    return graph(lambda d: next(iter(d["layers"].values())).update(changes))


def layers(change: Callable[[dict[str, Any], Any], object]):
    return graph(lambda d: change(d["layers"], next(iter(d["layers"].values()))))


def option(**options: Any):
    return layers(lambda table, row: [r["options"].update(options) for r in table.values() if "options" in r])


def body(value: Any):
    return graph(lambda d: d["bodies"].update({"body": value}))


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"nodes": [["output", None]], "bodies": {}}
    for _ in range(depth):
        inner = {"nodes": [["output", None]], "bodies": {"body": inner}}
    return inner


def inserted(*row: Any):
    return graph(lambda d: d["nodes"].insert(1, list(row)))


LAYERS = {
    "another class": layer(**{"class": "Module"}),
    "a class of code": layer(**{"class": RAN}),
    "a class by path": layer(**{"class": "torch.nn.Linear"}),
    "a lazy class": layer(**{"class": "LazyLinear"}),
    "a class that is no word": layer(**{"class": ["Linear"]}),
    "more keys": layer(evil=RAN),
    "training that is no flag": layer(training=RAN),
    "options that are none": layer(options=[RAN]),
    "an option of dunders": option(__class__=1),
    "an option of a hook": option(forward=RAN),
    "a device": option(device="cuda"),
    "a layer of itself": layers(lambda t, row: t.update({next(iter(t)): {"same": next(iter(t))}})),
    "a layer of none": layers(lambda t, row: t.update(evil={"same": "nowhere"})),
    "a layer of a list": layers(lambda t, row: t.update(evil={"same": ["x"]})),
    "a layer at dunders": layers(lambda t, row: t.update({"__class__": row})),
    "a layer inside dunders": layers(lambda t, row: t.update({"x.__init__.y": row})),
    "a layer at a method": layers(lambda t, row: t.update({"forward": row})),
    "a layer inside tables": layers(lambda t, row: t.update({"_modules.x": row})),
    "a layer of no name": layers(lambda t, row: t.update({"": row})),
    "a layer of dots": layers(lambda t, row: t.update({"a..b": row})),
    "a layer of a deep path": layers(lambda t, row: t.update({"x." * 5000 + "y": row})),
    "no table": graph(lambda d: d.update(layers=[RAN])),
}  # fmt: skip
ROWS = {
    "no kind": inserted("import", "os"),
    "a kind of a list": inserted(["call"], "os"),
    "too short": inserted("call"),
    "too long": inserted("call", "aten.relu.default", [], {"dict": []}, RAN),
    "an attribute": inserted("tensor", "__class__"),
    "an attribute's attribute": inserted("tensor", "forward.__globals__"),
    "a tensor that is a list": inserted("tensor", ["x"]),
    "a layer that it lacks": inserted("layer", "forward", [], {"dict": []}),
    "a body that it lacks": inserted("body", "__class__"),
    "an early output": inserted("output", None),
    "one input more": inserted("input"),
    "no rows": graph(lambda d: d.update(nodes=[])),
    "rows of text": graph(lambda d: d.update(nodes=RAN)),
    "no output": graph(lambda d: d["nodes"].pop()),
    "an output of text": graph(lambda d: d["nodes"][-1].__setitem__(1, RAN)),
    "arguments of a dictionary": graph(lambda d: calls(d)[0].__setitem__(2, {"dict": []})),
    "arguments of keywords": graph(lambda d: calls(d)[0].__setitem__(3, [1])),
    "a million rows": graph(lambda d: d["nodes"].__setitem__(slice(1, 1), [["input"]] * 10**6)),
}  # fmt: skip
BODIES = {
    "a body of text": body(RAN),
    "a body of no rows": body({"nodes": [], "bodies": {}}),
    "a body with more": body({"nodes": [["output", None]], "bodies": {}, "evil": RAN}),
    "bodies in bodies": body(nested(20)),
    "a body that calls": body({"nodes": [["call", "os.system", ["true"], {"dict": []}], ["output", None]], "bodies": {}}),
    "a body at dunders": graph(lambda d: d["bodies"].update({"__class__": nested(0)})),
    "a body at a method": graph(lambda d: d["bodies"].update({"forward": nested(0)})),
    "bodies that are none": graph(lambda d: d.update(bodies=RAN)),
    "bodies of great depth": graph(lambda d: d.update(bodies={"x." * 5000 + "y": nested(0)})),
}  # fmt: skip
TOPICS = {
    "operators": [Attack(f"operator {x[:40]!r}", called(x), REFUSED, "llama", "load graph") for x in OPERATORS],
    "sizes": [Attack(name, called(op, *args), REFUSED, "llama", "load graph") for name, (op, args) in SIZES.items()],
    "layers": [Attack(name, change, REFUSED, "cnn", "load graph") for name, change in LAYERS.items()],
    "rows": [Attack(name, change, REFUSED, "graph", "load graph") for name, change in ROWS.items()],
    "bodies": [Attack(name, change, REFUSED, "graph", "load graph") for name, change in BODIES.items()],
    "arguments": [Attack(name, argument(x), REFUSED, "llama", "load graph") for name, x in ARGUMENTS.items()],
    "keywords": [
        Attack(f"keyword {x!r}", keyword(x), REFUSED, "llama", "load graph")
        for x in ("__class__", "a, b: prunec_canary()", "class", "x\ny", "", "nothing", "out", "x" * 1000)
    ],
}  # fmt: skip


@pytest.mark.parametrize("topic", TOPICS)
def test_a_forged_graph_is_refused_before_anything_of_it_runs(attacks: Range, topic: str) -> None:
    attacks.expect_all(TOPICS[topic])


def test_what_is_passed_by_position_is_taken_by_position(attacks: Range) -> None:
    forged = graph(lambda d: d["call"]["parameters"][0].__setitem__(1, True))
    attacks.expect(Attack("keyword only", forged, REFUSED, "graph", "load graph"))


def test_a_call_has_no_keyword_that_forward_lacks(attacks: Range) -> None:
    forged = graph(lambda d: d["call"]["in"]["tuple"][1]["dict"][0].__setitem__(0, "evil"))
    attacks.expect(Attack("another keyword", forged, REFUSED, "llama", "load graph"))


@pytest.mark.parametrize("member", ["x", 7])
def test_a_list_of_tensors_holds_nothing_else(attacks: Range, member: Any) -> None:
    def change(document: dict[str, Any]) -> None:
        row = next(r for r in calls(document) if r[1] == "aten.index.Tensor")
        row[2][1][-1] = member

    attacks.expect(Attack(f"{member}", graph(change), REFUSED, "llama", "load graph"))


@pytest.mark.parametrize("entry", ["verify", "bench", "compile"])
def test_the_commands_refuse_forged_graphs_too(attacks: Range, entry: str) -> None:
    chosen = [attack for topic in TOPICS.values() for attack in topic[::3]]
    attacks.expect_all(
        Attack(a.name, a.change, REFUSED, "graph", entry)
        for a in chosen
        if a.subject == "graph"
    )


@pytest.mark.parametrize("subject", ["graph", "llama"])
def test_bench_opens_a_sound_artifact_and_nothing_else(attacks: Range, subject: str) -> None:
    found = attacks.outcome(Attack("sound", lambda _: None, (SAME,), subject, "bench"))
    assert (found.kind, found.events) == (SAME, ()), found
