"""Headers of safetensors files, with or without data that fits them."""


from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import json_places
import pytest
from hostile.attack import ANY, RAN, REFUSED, Attack, Forgery, Range
from json_places import Raw

WEIGHTS = "weights.safetensors"
HUGE = Raw("9" * 5000)


def header(change: Callable[[dict[str, Any]], object], size: int | None = None):
    """Another header; `size`: what it says its length is."""

    def forge(forgery: Forgery) -> None:
        path = forgery.place / WEIGHTS
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        document = json.loads(data[8 : 8 + length])
        change(document)
        text = json_places.text_of(document).encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", size or len(text)) + text + data[8 + length :])

    return forge


def index(change: Callable[[dict[str, Any]], object]):
    """Another index of names in the header."""

    def forge(document: dict[str, Any]) -> None:
        inner = json.loads(document["__metadata__"]["prunec"])
        change(inner)
        document["__metadata__"]["prunec"] = json_places.text_of(inner)

    return header(forge)


def first(document: dict[str, Any]) -> dict[str, Any]:
    """The entry of some tensor."""
    return document[next(key for key in sorted(document) if not key.startswith("__"))]


def _set(**changes: Any):
    return header(lambda d: first(d).update(changes))


def _entry(**changes: Any):
    return index(lambda d: first(d).update(changes))


def _renamed(new: str):
    """One tensor under another name, in header and index alike."""

    def forge(document: dict[str, Any]) -> None:
        inner = json.loads(document["__metadata__"]["prunec"])
        old = sorted(inner)[0]
        renamed = json_places.renamed(inner, old, new)
        document["__metadata__"]["prunec"] = json_places.text_of(renamed)
        document[new] = document.pop(old)

    return header(forge)


REFUSALS = {
    "a header of 2^63 bytes": header(lambda d: None, 2**63),
    "a header of 2^40 bytes": header(lambda d: None, 2**40),
    "a header of 100 MB": header(lambda d: None, 10**8),
    "a header without names": header(lambda d: d.pop("__metadata__")),
    "a header of no tensors": header(lambda d: [d.pop(k) for k in list(d) if k[0] != "_"]),
    "an unknown dtype": _set(dtype="F7"),
    "a dtype of code": _set(dtype=RAN),
    "a dtype of another width": _set(dtype="F64"),
    "a huge shape": _set(shape=[2**40, 2**40]),
    "a shape beyond its data": _set(shape=[10**9]),
    "a negative shape": _set(shape=[-1]),
    "a shape of words": _set(shape=["x"]),
    "offsets beyond the end": _set(data_offsets=[0, 2**50]),
    "offsets that overlap": _set(data_offsets=[0, 4]),
    "offsets the other way round": _set(data_offsets=[64, 0]),
    "offsets of a huge number": _set(data_offsets=[0, HUGE]),
    "an index that is none": header(lambda d: d["__metadata__"].update(prunec="[1]")),
    "an index that is no JSON": header(lambda d: d["__metadata__"].update(prunec=RAN)),
    "an index nested deeply": header(lambda d: d["__metadata__"].update(prunec="[" * 10**5)),
    "an index without entries": header(lambda d: d["__metadata__"].update(prunec="{}")),
    "an entry without a tensor": index(lambda d: first(d).pop("tensor")),
    "an entry of a missing tensor": _entry(tensor="nowhere"),
    "an entry of a list": _entry(tensor=["x"]),
    "an entry of null": index(lambda d: d.update({sorted(d)[0]: None})),
    "an entry with more": _entry(evil=RAN),
    "a device of code": _entry(device=RAN),
    "a device that is no word": _entry(device=3),
    "an order of words": _entry(order="10"),
    "an order that repeats": _entry(order=[0, 0]),
    "an order of huge numbers": _entry(order=[2**70, 0]),
    "an order of another rank": _entry(order=[0, 1, 2, 3, 4]),
    "grads of a word": _entry(requires_grad="yes"),
    "grads of a number": _entry(requires_grad=10**9),
    "a name of dunders": _renamed("__class__"),
    "a name inside dunders": _renamed("model.__init__.x"),
    "a name of code": _renamed(RAN),
    "a name above": _renamed("../../outside"),
    "a name of an attribute": _renamed("model.forward"),
    "a name of the tables": _renamed("_parameters.x"),
    "an empty name": _renamed(""),
    "a name of dots": _renamed("a..b"),
    "a long name": _renamed("x." * 20_000 + "y"),
}
HARMLESS_ONES = {
    "a device that is not here": _entry(device="cuda:12"),
    "a device far from here": _entry(device="cuda:99999999999999999999"),
    "an unknown device": _entry(device="evil:0"),
    "a device without data": _entry(device="meta"),
    "an integer that takes grads": _set(dtype="I32"),
    "another dtype of that width": _set(dtype="U32"),
    "metadata of its own": header(lambda d: d["__metadata__"].update(evil=RAN, format="evil")),
    "metadata that is no word": header(lambda d: d["__metadata__"].update(evil=[1])),
    "a tensor of nothing": header(
        lambda d: d.update(evil={"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]})
    ),
    "many names of one tensor": index(
        lambda d: d.update({f"evil.x{i}": dict(first(d)) for i in range(20_000)})
    ),
    "a frozen tensor": _entry(requires_grad=False),
    "turned axes": _entry(order=[1, 0]),
}


@pytest.mark.parametrize("entry", ["load", "load graph"])
def test_headers_that_no_artifact_has_are_refused(attacks: Range, entry: str) -> None:
    attacks.expect_all(
        Attack(name, change, REFUSED, "llama", entry) for name, change in REFUSALS.items()
    )


@pytest.mark.parametrize("entry", ["load", "load graph", "verify"])
def test_odd_headers_are_refused_or_harmless(attacks: Range, entry: str) -> None:
    attacks.expect_all(
        Attack(name, change, ANY, "llama", entry) for name, change in HARMLESS_ONES.items()
    )


def test_another_dtype_in_a_header_is_no_other_exception(attacks: Range) -> None:
    """All dtypes of one width stand for one another in the file."""
    attacks.expect_all(
        Attack(f"{dtype} {subject} {entry}", _set(dtype=dtype), ANY, subject, entry)
        for dtype in ("I32", "U32", "F32", "C64", "BOOL", "F8_E4M3", "F4")
        for subject in ("graph", "bert")
        for entry in ("load", "verify")
    )
