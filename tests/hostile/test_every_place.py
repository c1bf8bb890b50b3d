"""Every string, key, number and container of every JSON file of an artifact, forged in turn.

Each role of a place (the names of nodes, say) gets a few of the values in turn.
"""

# ruff: noqa: RUF001  (tables of attacks)
from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile.attack import ANY, Attack, Forgery, Range
from json_places import Place, Raw, at, renamed, roles, with_key, with_value, without

NAMES = (
    "a, b: prunec_canary()",
    "x = prunec_canary(); y",
    "x\nprunec_canary()\n",
    "x\r\n    prunec_canary()\n    y",
    '" + str(prunec_canary()) + "',
    "' + str(prunec_canary()) + '",
    '"""\nprunec_canary()\n"""',
    "x\\",
    "lambda: prunec_canary()",
    "[prunec_canary()]",
    "__import__('os').system('prunec_canary()')",
    "prunec_canary",
    "__class__",
    "forward.__globals__",
    "__init__.__globals__.os.system",
    "x.__class__.__base__.__subclasses__",
    "{0.__class__.__init__.__globals__}",
    "%(x)s%n%s",
    "class",
    "None",
    "self",
    "ﬁrst",  # becomes "first" when Python reads it as an identifier
    "_＿class＿_",
    "\u202eevil",
    "\x00",
    "\ud800",
    "",
    " ",
    ".",
    "a..b",
    "../outside/weights.safetensors",
    "/etc/passwd",
    "x" * 100_000,
    "0",
    "torch.ops.load_library",
    "aten.from_file.default",
    "aten::save",
    "os.system",
    "builtins.eval",
    "operator.attrgetter",
    "antigravity.geohash",
    "transformers.utils.hub.cached_file",
    "cuda:99",
    "meta",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**12, 0.5, -0.0, True, 2**20)
NUMBERS += tuple(map(Raw, ("9" * 5000, "1" + "0" * 1_000_000, "1e999", "-1e999", "NaN", "1e308")))
DEEP = Raw("[" * 100_000 + "]" * 100_000)
DEEP_KEYS = Raw('{"a":' * 20_000 + "0" + "}" * 20_000)
OTHERS = (None, [], {}, "", "x", True, 7, [[]], {"x": 1}, [None], DEEP, DEEP_KEYS)
IN_TURN = 2  # of the values, for each role
SUBJECTS = ("graph", "llama")


def json_files(place: pathlib.Path) -> list[str]:
    return sorted(
        p.relative_to(place).as_posix() for p in place.rglob("*.json") if p.name != "report.json"
    )  # which nobody reads


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Forgery], None]:
    return lambda forgery: forgery.write(name, change(forgery.read(name)))


def everywhere(old: str, new: str) -> Callable[[Forgery], None]:
    """In all JSON files, as somebody does who keeps them consistent."""

    def change(forgery: Forgery) -> None:
        for name in json_files(forgery.place):
            forgery.write(name, renamed(forgery.read(name), old, new))

    return change


def name_attacks(file: str, role: Place, path: Place, value: Any, name: str) -> Iterator[Any]:
    shown = f"{'/'.join(map(str, role))} = {name[:40]!r}"
    if isinstance(value, str):
        yield f"{file} {shown}", changed(file, lambda d: with_value(d, path, name))
        yield f"{file} everywhere {shown}", everywhere(value, name)
    if path and isinstance(path[-1], str):
        yield f"{file} key {shown}", changed(file, lambda d: with_key(d, path, name))
        if role[-1] == "*":
            yield f"{file} key everywhere {shown}", everywhere(path[-1], name)


def value_attacks(file: str, role: Place, path: Place, old: Any, value: Any) -> Iterator[Any]:
    shown = f"{'/'.join(map(str, role))} = {str(value)[:40]!r}"
    yield f"{file} {shown}", changed(file, lambda d: with_value(d, path, value))


def removals(file: str, role: Place, path: Place) -> Iterator[Any]:
    if path:
        shown = "/".join(map(str, role))
        yield f"{file} {shown} is missing", changed(file, lambda d: without(d, path))


def attacks_on(place: pathlib.Path, subject: str, kind: str) -> Iterator[Attack]:
    """All of one kind: a few of its values for each role, in turn."""
    pool = {"names": NAMES, "numbers": NUMBERS, "types": OTHERS, "removals": ()}[kind]
    turn = itertools.cycle(pool)
    forgery = Forgery(place, place, place)
    entries = itertools.cycle(("load graph", "load", "load graph", "verify", "load into"))
    for file in json_files(place):
        document = forgery.read(file)
        for role, paths in roles(document).items():
            path = paths[len(paths) // 2]
            value = at(document, path)
            cases: list[Any] = []
            if kind == "removals":
                cases = list(removals(file, role, path))
            elif kind == "names":
                for name in itertools.islice(turn, IN_TURN):
                    cases += name_attacks(file, role, path, value, name)
            elif kind == "types" or (isinstance(value, (int, float)) and kind == "numbers"):
                for new in itertools.islice(turn, IN_TURN):
                    cases += value_attacks(file, role, path, value, new)
            for name, change in cases:
                yield Attack(name, change, ANY, subject, next(entries))


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("kind", ["names", "numbers", "types", "removals"])
def test_a_forged_place_is_refused_or_harmless(
    attacks: Range, subjects: pathlib.Path, kind: str, subject: str
) -> None:
    attacks.expect_all(attacks_on(subjects / subject, subject, kind))
