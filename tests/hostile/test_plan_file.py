"""plan.json sets integers of instances and cuts tensors; it reaches no class, method or other
value. Where the artifact's model is the user's own, it is applied to that."""

# ruff: noqa: E501, RUF001  (tables of attacks)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hostile.attack import ANY, HARMLESS, RAN, REFUSED, Attack, Forgery, Range

PLAN = "plan.json"


def plan(change: Callable[[dict[str, Any]], object]):
    def forge(forgery: Forgery) -> None:
        document = forgery.read(PLAN)
        change(document)
        forgery.write(PLAN, document)

    return forge


def attribute(path: str, name: str, old: Any, new: Any):
    return plan(lambda d: d["attributes"].setdefault(path, {}).update({name: [old, new]}))


# What no plan may set, whatever it says the old value is: (module, attribute, old, new).
NEVER = (
    ("", "__class__", None, 1),
    ("", "__class__", "x", "y"),
    ("", "__dict__.x", None, 1),
    ("", "__class__.evil", None, 1),
    ("", "forward", None, 1),
    ("", "forward.__func__", None, 1),
    ("", "forward.__code__.co_flags", None, 1),
    ("", "forward.__globals__.x", None, 1),
    ("", "training", False, True),
    ("", "dump_patches", False, True),
    ("", "call_super_init", False, True),
    ("", "_version", 1, 2),
    ("", "_parameters.x", None, 1),
    ("", "_modules.x", None, 1),
    ("", "_forward_hooks.x", None, 1),
    ("", "state_dict", None, 1),
    ("", "not_there", None, 1),
    ("", "", None, 1),
    ("", ".", None, 1),
    ("", "a..b", None, 1),
    ("", "config.__class__.model_type", "llama", "evil"),
    ("", "config.__class__.x", None, 1),
    ("", "config.to_dict", None, 1),
    ("", "config.model_type", "llama", "evil"),
    ("", "config.auto_map", None, {"AutoModel": RAN}),
    ("", "config._name_or_path", "", "evil/x"),
    ("", "config.hidden_act", "silu", RAN),
    ("", "config.attribute_map.x", None, 1),
    ("", "config.torch.x", None, 1),
    ("nowhere", "x", None, 1),
    ("__class__", "x", None, 1),
    ("model.__class__", "x", None, 1),
    ("model.layers.__len__", "x", None, 1),
    ("model.layers.0.self_attn.__class__", "is_causal", True, False),
    ("model.embed_tokens", "weight", None, 1),
    ("model.embed_tokens", "weight.data", None, 1),
    ("model.embed_tokens", "embedding_dim", 32, RAN),
    ("model.embed_tokens", "embedding_dim", 32, None),
    ("model.embed_tokens", "embedding_dim", 32, True),
    ("model.embed_tokens", "embedding_dim", 32, [16]),
    ("model.embed_tokens", "embedding_dim", 32, {"x": 1}),
    ("model.embed_tokens", "embedding_dim", 32, 1.5),
    ("model.embed_tokens", "embedding_dim", [32], [16]),
    ("model.embed_tokens", "embedding_dim", 31, 16),
    ("../outside", "x", None, 1),
)
SLICES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an index too large": lambda s: s.update({"0": [0, 10**6]}),
    "a negative index": lambda s: s.update({"0": [-1]}),
    "a huge index": lambda s: s.update({"0": [2**63]}),
    "an index far beyond": lambda s: s.update({"0": [10**4000]}),
    "a flag": lambda s: s.update({"0": [True]}),
    "a float": lambda s: s.update({"0": [0.5]}),
    "a word": lambda s: s.update({"0": "012"}),
    "nothing": lambda s: s.update({"0": None}),
    "no index": lambda s: s.update({"0": []}),
    "one index often": lambda s: s.update({"0": [0] * 10**6}),
    "an axis too large": lambda s: s.update({"9": [0]}),
    "an axis far too large": lambda s: s.update({"9" * 5000: [0]}),
    "a negative axis": lambda s: s.update({"-1": [0]}),
    "an axis that is none": lambda s: s.update({"x": [0]}),
    "an axis in other digits": lambda s: s.update({"٠": [0]}),
}


def sliced(change: Callable[[dict[str, Any]], object]):
    return plan(lambda d: change(d["slices"]["model.embed_tokens.weight"]))


def tensor(**changes: Any):
    value = {"dtype": "float32", "shape": [2], "values": [1.0, 2.0]} | changes
    return plan(lambda d: d["constants"].update({"model.extra.bias": value}))


def dropped(**changes: Any):
    drop = {"name": "x", "node": "y", "constant": None, "tensors": []} | changes
    return plan(lambda d: d["dropped"].append(drop))


OTHERS = {
    "a stub of many values": plan(lambda d: d["stubs"].update({"model.norm": "zero/" + "9" * 12})),
    "a stub of a huge number": plan(lambda d: d["stubs"].update({"model.norm": "zero/" + "9" * 5000})),
    "a stub of fewer than none": plan(lambda d: d["stubs"].update({"model.norm": "zero/-5"})),
    "a stub of another form": plan(lambda d: d["stubs"].update({"model.norm": RAN})),
    "a stub that is no word": plan(lambda d: d["stubs"].update({"model.norm": ["zero"]})),
    "a stub of the whole": plan(lambda d: d["stubs"].update({"": "zero"})),
    "a stub nowhere": plan(lambda d: d["stubs"].update({"nowhere": "zero"})),
    "a stub in a class": plan(lambda d: d["stubs"].update({"model.__class__": "zero"})),
    "members that are not there": plan(lambda d: d["members"].update({"model.layers": [7]})),
    "negative members": plan(lambda d: d["members"].update({"model.layers": [-1]})),
    "members that are no numbers": plan(lambda d: d["members"].update({"model.layers": ["0"]})),
    "members of what is no list": plan(lambda d: d["members"].update({"model": [0]})),
    "a constant of no dtype": tensor(dtype="load"),
    "a constant of an attribute": tensor(dtype="hub.load"),
    "a constant of dunders": tensor(dtype="__class__"),
    "a constant too large": tensor(shape=[10**12]),
    "a constant of negative size": tensor(shape=[-1]),
    "a constant of overflowing size": tensor(shape=[2**40, 2**40]),
    "a constant of no values": tensor(values=[]),
    "a constant of words": tensor(values=["x", RAN]),
    "a constant of empty axes": tensor(shape=[0, 2**60], values=[]),
    "a constant nowhere": tensor(),
    "a drop of nothing": dropped(),
    "a drop with more": dropped(evil=RAN),
    "a drop of words": dropped(tensors=RAN),
    "another version": plan(lambda d: d.update(version=3)),
    "a version that is none": plan(lambda d: d.update(version=True)),
    "another back end": plan(lambda d: d.update(backend="evil")),
    "outputs": plan(lambda d: d.update(outputs=[RAN, 10**9])),
    "shapes of words": plan(lambda d: d["shapes"].update({"model.embed_tokens.weight": "32"})),
    "no shapes": plan(lambda d: d.update(shapes=[])),
    "huge shapes": plan(lambda d: d["shapes"].update({"model.embed_tokens.weight": [2**62, 4]})),
    "a shape of the wrong rank": plan(lambda d: d["shapes"].update({"model.embed_tokens.weight": []})),
}  # fmt: skip


def test_a_plan_sets_nothing_but_integers_of_instances(attacks: Range) -> None:
    attacks.expect_all(
        Attack(f"{path}:{name} {old} -> {new}", attribute(path, name, old, new), REFUSED)
        for path, name, old, new in NEVER
    )


def test_a_plan_for_the_users_own_model_sets_no_more(attacks: Range) -> None:
    cases = [(path, *rest) for path, *rest in NEVER if not path.startswith("model.")]
    attacks.expect_all(
        Attack(f"{path}:{name}", attribute(path, name, old, new), REFUSED, "cnn", "load into")
        for path, name, old, new in cases
        if not name.startswith("config")
    )


@pytest.mark.parametrize("new", [-1, 0, 2**31, 2**63, 10**100, 10**18])
def test_integers_that_make_no_model_are_refused_or_harmless(attacks: Range, new: int) -> None:
    names = {"model.embed_tokens": "embedding_dim", "": "config.hidden_size"}
    names |= {"model.layers.0.self_attn": "head_dim", "model.layers.0.mlp.up_proj": "out_features"}
    attacks.expect_all(
        Attack(f"{path}.{name} = {new}", attribute(path, name, 32, new), ANY)
        for path, name in names.items()
    )


@pytest.mark.parametrize("what", SLICES)
def test_slices_that_fit_no_tensor_are_refused(attacks: Range, what: str) -> None:
    attacks.expect(Attack(what, sliced(SLICES[what]), REFUSED))


def test_other_words_of_a_plan_are_refused_or_harmless(attacks: Range) -> None:
    attacks.expect_all(Attack(name, change, HARMLESS) for name, change in OTHERS.items())
    all_members = plan(lambda d: d["members"].update({"model.layers": [0]}))
    attacks.expect(Attack("all members", all_members, ANY))  # a smaller model is one, too


def test_a_plan_of_another_form_is_refused(attacks: Range) -> None:
    def keyless(key: str):
        return plan(lambda d: d.pop(key))

    required = ("version", "kept", "attributes", "slices", "shapes", "backend", "constants")
    attacks.expect_all(Attack(f"without {key}", keyless(key), REFUSED) for key in required)
    for value in (None, 0, "x", [], [1]):
        attacks.expect_all(
            Attack(f"{key} = {value}", plan(lambda d, k=key, v=value: d.update({k: v})), ANY)
            for key in (*required, "dropped", "members", "stubs", "scales", "dead", "outputs")
        )


@pytest.mark.parametrize("entry", ["load", "load into"])
def test_a_plan_gives_no_layer_a_size_that_its_tensors_lack(attacks: Range, entry: str) -> None:
    def changed(document: dict[str, Any]) -> None:
        sizes = document["attributes"]["bert.embeddings.LayerNorm"]
        sizes["normalized_shape"][1] = sizes["normalized_shape"][0]

    attacks.expect(Attack("a norm's shape", plan(changed), REFUSED, "bert", entry))


def test_a_class_that_the_plan_did_not_keep_is_not_loaded(attacks: Range) -> None:
    def forge(forgery: Forgery) -> None:
        forgery.edit("prunec.json", backend="module")

    attacks.expect(Attack("kept says the manifest", forge, REFUSED, "graph", "load into"))
