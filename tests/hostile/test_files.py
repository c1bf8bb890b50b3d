"""The files of the directory: links, pipes, devices, damage, swaps, and what the checksums say."""

# ruff: noqa: E501  (tables of attacks)
from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
from collections.abc import Callable

import pytest
from hostile.attack import ANY, HARMLESS, MANIFEST, REFUSED, Attack, Forgery, Range

FILES = ("prunec.json", "plan.json", "graph.json", "weights.safetensors", "config.json")


def replaced(name: str, make: Callable[[pathlib.Path, Forgery], None]):
    """Something else in the place of a file."""

    def change(forgery: Forgery) -> None:
        path = forgery.place / name
        path.unlink()
        make(path, forgery)

    return change


def _link_outside(path: pathlib.Path, forgery: Forgery) -> None:
    path.symlink_to(forgery.outside / path.name)


def _relative_link(path: pathlib.Path, forgery: Forgery) -> None:
    path.symlink_to(f"../outside/{path.name}")


def _link_inside(path: pathlib.Path, forgery: Forgery) -> None:
    shutil.copy(forgery.outside / path.name, path.with_name("inside"))
    path.symlink_to("inside")


def _socket(path: pathlib.Path, forgery: Forgery) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[pathlib.Path, Forgery], None]] = {
    "a link outside": _link_outside,
    "a relative link outside": _relative_link,
    "a link to /dev/zero": lambda path, forgery: path.symlink_to("/dev/zero"),
    "a link to /dev/stdin": lambda path, forgery: path.symlink_to("/dev/stdin"),
    "a link to /proc/self/mem": lambda path, forgery: path.symlink_to("/proc/self/mem"),
    "a link to nothing": lambda path, forgery: path.symlink_to("nothing"),
    "a link to itself": lambda path, forgery: path.symlink_to(path.name),
    "a pipe": lambda path, forgery: os.mkfifo(path),
    "a socket": _socket,
    "a directory": lambda path, forgery: path.mkdir(),
    "nothing": lambda path, forgery: None,
}


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_plain_file_is_refused(attacks: Range, special: str) -> None:
    attacks.expect_all(
        Attack(
            f"{special} as {name}",
            replaced(name, SPECIAL[special]),
            # a class is loaded without its graph
            HARMLESS if (name, entry) == ("graph.json", "load") else REFUSED,
            "llama",
            entry,
        )
        for name in FILES
        for entry in ("load", "verify", "load graph")
        if not (entry == "load graph" and name in ("plan.json", "config.json"))
    )


def test_plain_files_are_read_however_they_got_there(attacks: Range) -> None:
    """A hard link is a file, a link inside the directory stays in it, a directory may be linked."""

    def hard(path: pathlib.Path, forgery: Forgery) -> None:
        os.link(forgery.other.parent / "llama" / path.name, path)

    def linked(forgery: Forgery) -> None:
        moved = forgery.place.rename(forgery.place.with_name("moved"))
        forgery.place.symlink_to(moved)

    attacks.expect_all(Attack(f"hard {name}", replaced(name, hard), HARMLESS) for name in FILES)
    attacks.expect_all(Attack(f"in {name}", replaced(name, _link_inside), HARMLESS) for name in FILES)
    attacks.expect(Attack("the directory is a link", linked, ("identical load",)))


def test_files_that_nobody_asks_for_are_not_read(attacks: Range) -> None:
    def strew(forgery: Forgery) -> None:
        for name in ("evil.py", "sitecustomize.py", "conftest.py", "torch.py", "__init__.py"):
            (forgery.place / name).write_text("prunec_canary()")
        (forgery.place / "pytorch_model.bin").write_bytes(b"cprunec\ncanary\n(tR.")
        (forgery.place / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/x"}')
        (forgery.place / "model.safetensors").symlink_to("/dev/zero")
        os.mkfifo(forgery.place / "modeling.json")
        (forgery.place / "custom_generate").mkdir()
        (forgery.place / "custom_generate" / "generate.py").write_text("prunec_canary()")

    for entry in ("load", "load graph", "verify"):
        for subject in ("llama", "graph"):
            attacks.expect(Attack("strewn", strew, ("identical load",), subject, entry))


def cut(name: str, change: Callable[[bytes], bytes]):
    def damage(forgery: Forgery) -> None:
        path = forgery.place / name
        path.write_bytes(change(path.read_bytes()))

    return damage


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "halved": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-1],
    "doubled": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "no utf-8": lambda data: b"\xff\xfe" + data,
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a pickle": lambda data: b"cbuiltins\nprunec_canary\n(tR.",
    "nested": lambda data: b"[" * 200_000,
    "one word": lambda data: b"null",
}


@pytest.mark.parametrize("fitted", [True, False])
def test_damaged_files_are_refused(attacks: Range, fitted: bool) -> None:
    attacks.expect_all(
        Attack(
            f"{damage} {name}",
            cut(name, change),
            REFUSED if not fitted and name != MANIFEST else HARMLESS,
            fitted=fitted,
            entry="load graph" if name == "graph.json" else "load",
        )
        for name in FILES
        for damage, change in DAMAGE.items()
    )


def swapped(name: str, source: str):
    def change(forgery: Forgery) -> None:
        other = forgery.other.parent / source / name
        if other.exists():
            shutil.copy(other, forgery.place / name)

    return change


@pytest.mark.parametrize("entry", ["load", "load graph", "verify"])
def test_files_of_other_artifacts_do_not_mix(attacks: Range, entry: str) -> None:
    """Unfitted they are refused; fitted, at worst another model comes of it."""
    names = (*FILES, "rest.safetensors", "constants.safetensors", "generation_config.json")
    attacks.expect_all(
        Attack(f"{name} of {source}", swapped(name, source), ANY, subject, entry, fitted)
        for fitted in (True, False)
        for subject, source in (("llama", "bert"), ("graph", "cnn"), ("bert", "graph"))
        for name in names
    )


def sums(change: Callable[[dict[str, str]], object]):
    """Other checksums, with weights that were changed."""

    def forge(forgery: Forgery) -> None:
        cut("weights.safetensors", lambda data: data[:-4] + b"\0\0\0\x41")(forgery)
        manifest = forgery.read(MANIFEST)
        manifest["checksums"] = change(manifest["checksums"])
        forgery.write(MANIFEST, manifest)

    return forge


def _but(name: str) -> Callable[[dict[str, str]], object]:
    return lambda s: {k: v for k, v in s.items() if k != name}


def _also(name: str) -> Callable[[dict[str, str]], object]:
    return lambda s: _but("weights.safetensors")(s) | {name: s["weights.safetensors"]}  # type: ignore[operator]


SUMS: dict[str, Callable[[dict[str, str]], object]] = {
    "none": lambda s: {},
    "null": lambda s: None,
    "a list": lambda s: list(s),
    "names only": lambda s: dict.fromkeys(s),
    "empty sums": lambda s: dict.fromkeys(s, ""),
    "numbers": lambda s: dict.fromkeys(s, 0),
    "lists": lambda s: {k: [] for k in s},
    "short sums": lambda s: {k: v[:8] for k, v in s.items()},
    "without the weights": _but("weights.safetensors"),
    "an absolute name": _also("/etc/passwd"),
    "a name above": _also("../outside/weights.safetensors"),
    "a name around": _also("../artifact/weights.safetensors"),
    "a dotted name": _also("./weights.safetensors"),
    "a name twice around": _also("x/../weights.safetensors"),
    "a name with a zero": _also("weights.safetensors\0"),
    "a name of the manifest": lambda s: s | {MANIFEST: "0" * 64},
    "a long name": _also("x/" * 50_000),
    "an empty name": _also(""),
    "the directory": _also("."),
}


@pytest.mark.parametrize("what", SUMS)
def test_changed_weights_never_pass_without_their_checksum(attacks: Range, what: str) -> None:
    attacks.expect_all(
        Attack(f"checksums: {what}", sums(SUMS[what]), REFUSED, "llama", entry, fitted=False)
        for entry in ("load", "verify")
    )


def test_the_last_of_two_checksums_counts_and_must_fit(attacks: Range) -> None:
    def twice(forgery: Forgery) -> None:
        sums(lambda s: s)(forgery)
        text = (forgery.place / MANIFEST).read_text()
        old = json.dumps(forgery.read(MANIFEST)["checksums"])
        forgery.write(MANIFEST, text[: text.rindex("}")] + f', "checksums": {old}}}')

    attacks.expect(Attack("twice", twice, REFUSED, fitted=False))


def test_a_directory_linked_into_the_artifact_is_not_followed(attacks: Range) -> None:
    def linked(forgery: Forgery) -> None:
        (forgery.place / "sub").symlink_to(forgery.outside)
        manifest = forgery.read(MANIFEST)
        sums = manifest["checksums"]
        manifest["checksums"] = sums | {"sub/plan.json": sums["plan.json"]}
        forgery.write(MANIFEST, manifest)

    attacks.expect_all(Attack("sub", linked, HARMLESS, "llama", e) for e in ("load", "verify"))
