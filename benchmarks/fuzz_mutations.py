"""Damage to an artifact, drawn by a seeded generator: of bytes, of JSON, of safetensors headers, of
files against those of other artifacts."""

# ruff: noqa: E501  (tables of attacks)
from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_places
from json_places import Raw

MANIFEST = "prunec.json"
STRINGS = (
    "", " ", ".", "..", "x" * 5000, "__class__", "__init__.__globals__", "a, b: prunec_canary()",
    "x\nprunec_canary()", '" + str(prunec_canary()) + "', "' + prunec_canary() + '", "class", "\x00",
    "ﬁrst", "\u202e", "../../etc/passwd", "/dev/zero", "None", "0", "-1", "nan", "cuda:9", "meta",
    "aten.relu.default", "aten.from_file.default", "operator.getitem", "prims.sum.default",
    "transformers.BertModel", "transformers.pipeline", "float64", "int8", "module", "graph",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 3, 7, 64, 2**15, 2**31, 2**63, -(2**63), 2**64, 0.5, -0.0)
NUMBERS += (1e-30, 1e30, 1e308, *map(Raw, ("1e999", "NaN", "-Infinity", "9" * 3000)))
OTHERS: tuple[Any, ...] = (None, True, False, 0, 1.5, "x", [], {}, [[]], [0, 1], {"x": 1})
LARGEST = 2 << 20  # bytes of a file that is changed once more: growth of growth has no end
DEEP = Raw("[" * 50_000 + "]" * 50_000)


@dataclasses.dataclass
class Damage:
    """One case: what to open, how, and what was done to it."""

    number: int
    subject: str
    entry: str
    fitted: bool
    steps: list[str]


def damage(subjects: Path, place: Path, number: int, seed: int) -> Damage:
    """Copy an artifact to `place` and damage it; the same for the same number and seed."""
    draw = random.Random(f"{seed} {number}")
    names = sorted(p.name for p in subjects.iterdir() if (p / MANIFEST).exists())
    subject = draw.choice(names)
    entries = ("load", "load graph", "load into", "verify")
    entry = draw.choices(entries, (4, 3, 2, 1))[0]
    case = Damage(number, subject, entry, draw.random() < 0.5, [])
    shutil.copytree(subjects / subject, place)
    others = [subjects / name for name in names if name != subject]
    for _ in range(draw.choices((1, 2, 4), (7, 2, 1))[0]):
        kind = draw.choices(tuple(_KINDS), tuple(_KINDS.values()))[0]
        case.steps.append(kind(place, others, draw))
    if case.fitted:
        fit(place)
    return case


def fit(place: Path) -> None:
    """Make the checksums those of the files, where the manifest is still one."""
    path = place / MANIFEST
    if not _is_own(path):
        return
    try:
        text = path.read_text()
        sums = json.loads(text)["checksums"]
        for name, old in sums.items():
            if isinstance(old, str) and old and (place / name).is_file():
                text = text.replace(old, hashlib.sha256((place / name).read_bytes()).hexdigest())
        path.write_text(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _is_own(path: Path) -> bool:
    """A file of the copy: through a link, what lies outside would be damaged, or have no end."""
    return path.is_file() and not path.is_symlink()


def _file(place: Path, draw: random.Random, suffix: str = "") -> Path | None:
    files = sorted(p for p in place.rglob("*") if _is_own(p) and p.name.endswith(suffix))
    files = [p for p in files if p.name != "report.json"]  # nobody reads it
    return draw.choice(files) if files else None


def _bytes(place: Path, others: list[Path], draw: random.Random) -> str:
    path = _file(place, draw)
    if path is None:
        return "nothing left"
    data = bytearray(path.read_bytes())
    where = draw.randrange(len(data) + 1)
    end = min(len(data), where + draw.choice((1, 4, 16, 256)))
    how = draw.choice(("flip", "flip", "truncate", "cut", "repeat", "zero", "insert", "random"))
    if how == "flip":
        for _ in range(draw.choice((1, 1, 1, 8))):
            if data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "truncate":
        del data[where:]
    elif how == "cut":
        del data[where:end]
    elif how == "repeat":
        data[where:where] = data[where:end] * draw.choice((1, 1, 100))
    elif how == "zero":
        data[where:end] = bytes(end - where)
    elif how == "insert":
        data[where:where] = draw.choice((b"\0", b'"', b"}", b"[", b",", b"\xff", b"1e9", b"0"))
    else:
        data[where:end] = draw.randbytes(end - where)
    path.write_bytes(bytes(data))
    return f"{how} {path.name} at {where}"


def _document(path: Path) -> Any:
    if path.stat().st_size > LARGEST:
        return None
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None


def _json(place: Path, others: list[Path], draw: random.Random) -> str:
    path = _file(place, draw, ".json")
    document = None if path is None else _document(path)
    if path is None or document is None:
        return "no JSON left"
    changed, told = _changed(document, draw, [_document(o / path.name) for o in others if (o / path.name).exists()])
    path.write_text(json_places.text_of(changed), encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: {told}"


def _changed(document: Any, draw: random.Random, others: list[Any]) -> tuple[Any, str]:
    roles = json_places.roles(document)
    role = draw.choice(list(roles))  # each role alike: nodes are many, the manifest's keys are not
    path = draw.choice(roles[role])
    value = json_places.at(document, path)
    shown = "/".join(map(str, path))[:80]
    how = draw.choice(("value", "value", "value", "type", "delete", "copy", "key", "rename", "other"))
    if how == "delete" and path:
        return json_places.without(document, path), f"without {shown}"
    if how == "copy":
        return _copied(document, path, draw), f"{shown} twice"
    if how == "key" and path and isinstance(path[-1], str):
        return json_places.with_key(document, path, draw.choice(STRINGS)), f"key {shown} renamed"
    if how == "rename" and isinstance(value, str):
        new = _spliced(value, draw)
        return json_places.renamed(document, value, new), f"{value[:40]!r} renamed {new[:40]!r}"
    if how == "other" and others:
        return _borrowed(document, path, role, draw.choice(others), draw), f"{shown} of another"
    new = draw.choice((*OTHERS, DEEP)) if how == "type" else _altered(value, draw)
    return json_places.with_value(document, path, new), f"{shown} = {str(new)[:40]!r}"


def _altered(value: Any, draw: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or value is None:
        return draw.choice(OTHERS)
    if isinstance(value, (int, float)):
        near = (value + 1, value - 1, -value, value * 2, value * 1000)
        return draw.choice((*near, *NUMBERS))
    if isinstance(value, str):
        return _spliced(value, draw)
    if isinstance(value, list):
        return draw.choice((value[::-1], value[1:], value * 2, [*value, None], value * 1000 if len(value) < 50 else []))
    items = list(value.items())
    draw.shuffle(items)
    return dict(draw.choice((items, items[1:], [*items, ("x", 1)])))


def _spliced(text: str, draw: random.Random) -> str:
    where, other = draw.randrange(len(text) + 1), draw.choice(STRINGS)
    return draw.choice((other, text[:where] + other + text[where:], text[:where], text + text))


def _copied(document: Any, path: json_places.Place, draw: random.Random) -> Any:
    """A member of a list twice; of a dictionary, under another key too."""
    value = json_places.at(document, path)
    if not path:
        return [document, document]
    owner = json_places.at(document, path[:-1])
    if isinstance(owner, list):
        index = int(path[-1])
        return json_places.with_value(document, path[:-1], [*owner[:index], value, *owner[index:]])
    return json_places.with_value(document, path[:-1], {**owner, draw.choice(list(owner)): value})


def _borrowed(
    document: Any, path: json_places.Place, role: json_places.Place, other: Any, draw: random.Random
) -> Any:
    """What another artifact has in a place of the same role."""
    places = json_places.roles(other).get(role) if other is not None else None
    if not places:
        return document
    return json_places.with_value(document, path, json_places.at(other, draw.choice(places)))


def _header(place: Path, others: list[Path], draw: random.Random) -> str:
    """The JSON header of a safetensors file, its length made to fit or not."""
    path = _file(place, draw, ".safetensors")
    data = b"" if path is None else path.read_bytes()
    if path is None or not 8 <= len(data) <= LARGEST:
        return "no weights left"
    length = struct.unpack("<Q", data[:8])[0]
    try:
        header = json.loads(data[8 : 8 + length])
        inner = header.get("__metadata__", {})
        if draw.random() < 0.5 and isinstance(inner, dict) and inner:
            key = draw.choice(list(inner))
            part, told = _changed(json.loads(inner[key]), draw, [])
            header["__metadata__"][key] = json_places.text_of(part)
        else:
            header, told = _changed(header, draw, [])
    except (ValueError, AttributeError, RecursionError):
        return "no header left"
    text = json_places.text_of(header).encode("utf-8", "surrogatepass")
    size = len(text) if draw.random() < 0.9 else draw.choice((0, length, 2**40, 2**63, len(data)))
    path.write_bytes(struct.pack("<Q", size) + text + data[8 + length :])
    return f"{path.name}: header {told}"


def _swap(place: Path, others: list[Path], draw: random.Random) -> str:
    path = _file(place, draw)
    if path is None:
        return "nothing left"
    how = draw.choice(("other", "other", "delete", "same", "link", "directory"))
    sources = [o / path.name for o in others if (o / path.name).is_file()]
    if how == "other" and sources:
        shutil.copy(source := draw.choice(sources), path)
        return f"{path.name} of {source.parent.name}"
    if how == "same":
        second = _file(place, draw)
        assert second is not None
        held = path.read_bytes()
        path.write_bytes(second.read_bytes())
        second.write_bytes(held)
        return f"{path.name} and {second.name} exchanged"
    path.unlink()
    if how == "link":
        path.symlink_to(draw.choice(("nothing", "/dev/zero", "/etc/passwd", MANIFEST)))
    elif how == "directory":
        path.mkdir()
    return f"{how} for {path.name}"


_Kind = Callable[[Path, list[Path], random.Random], str]
_KINDS: dict[_Kind, int] = {_bytes: 3, _json: 5, _header: 1, _swap: 1}
