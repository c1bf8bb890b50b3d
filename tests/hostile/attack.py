"""A copy of an artifact to forge, and what came of opening it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
import stat
from collections.abc import Callable, Iterable
from typing import Any

import json_places
from fork_server import CLEAR, DIFFERENT, SAME, Call, ForkServer, Outcome

MANIFEST = "prunec.json"
RAN = "prunec_canary()"  # what payloads call
REFUSED = (CLEAR,)
HARMLESS = (CLEAR, SAME)
ANY = (CLEAR, SAME, DIFFERENT)


@dataclasses.dataclass
class Forgery:
    """An artifact's copy at `place`; `outside` is a directory beside it that is not its business,
    `other` the artifact of another model."""

    place: pathlib.Path
    outside: pathlib.Path
    other: pathlib.Path

    def read(self, name: str) -> Any:
        return json.loads((self.place / name).read_text())

    def write(self, name: str, document: Any) -> None:
        text = document if isinstance(document, str) else json_places.text_of(document)
        (self.place / name).write_text(text, encoding="utf-8", errors="surrogatepass")

    def edit(self, name: str, **changes: Any) -> None:
        """Set keys of a JSON file that holds a dictionary."""
        self.write(name, self.read(name) | changes)

    def fit(self) -> None:
        """Make the checksums those of the files there are: whoever forges a file can do that too.
        A manifest that is no longer one stays as it is."""
        if (self.place / MANIFEST).is_symlink() or not _is_plain(self.place / MANIFEST):
            return
        try:
            manifest = self.read(MANIFEST)
            sums = manifest["checksums"]
            fitted = {name: self._sum(name, old) for name, old in sums.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            return
        text = (self.place / MANIFEST).read_text()
        for name, new in fitted.items():
            if isinstance(sums[name], str) and sums[name]:
                text = text.replace(sums[name], new)
        (self.place / MANIFEST).write_text(text)

    def _sum(self, name: str, old: Any) -> Any:
        path = self.place / name
        if not _is_plain(path):
            return old
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_plain(path: pathlib.Path) -> bool:
    """A file, or a link to one; what has no end is not read here."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@dataclasses.dataclass(frozen=True)
class Attack:
    """`change` forges the copy of a `subject`'s artifact; opening it by `entry` may end in one of
    `may` and in nothing else. `fitted`: the checksums are made to fit afterwards."""

    name: str
    change: Callable[[Forgery], None]
    may: tuple[str, ...] = REFUSED
    subject: str = "llama"
    entry: str = "load"
    fitted: bool = True
    arguments: tuple[str, ...] = ()


class Range:
    """Where attacks are tried: `subjects` are sound artifacts by name, `scratch` is for copies.
    `at_most`: so many of a list are tried, from all along it; None: all."""

    def __init__(
        self,
        server: ForkServer,
        subjects: pathlib.Path,
        scratch: pathlib.Path,
        at_most: int | None = None,
    ) -> None:
        self.server, self.subjects, self.scratch = server, subjects, scratch
        self.at_most = at_most
        self.count = 0

    def forgery(self, subject: str) -> Forgery:
        """A fresh copy. What lies outside is sound, so that only its being opened is wrong."""
        self.count += 1
        home = self.scratch / str(self.count)
        outside = home / "outside"
        shutil.copytree(self.subjects / subject, home / "artifact")
        shutil.copytree(self.subjects / subject, outside)
        other = self.subjects / ("cnn" if subject != "cnn" else "graph")
        return Forgery(home / "artifact", outside, other)

    def outcome(self, attack: Attack, **limits: Any) -> Outcome:
        forgery = self.forgery(attack.subject)
        try:
            attack.change(forgery)
            if attack.fitted:
                forgery.fit()
            made = forgery.place.parent / "made"
            writes: tuple[str, ...] = ()
            arguments = attack.arguments
            if attack.entry == "compile":
                made.mkdir()
                writes, arguments = (str(made),), (*arguments, "--out", str(made / "out"))
            return self.server.run(
                Call(
                    attack.entry,
                    attack.subject,
                    forgery.place,
                    forgery.outside,
                    writes,
                    tuple(a.format(place=forgery.place) for a in arguments),
                    **limits,
                )
            )
        finally:
            shutil.rmtree(forgery.place.parent, ignore_errors=True)

    def expect(self, attack: Attack) -> None:
        """Raises AssertionError with what happened instead."""
        found = self.outcome(attack)
        assert found.kind in attack.may, told(attack, found)

    def expect_all(self, attacks: Iterable[Attack]) -> None:
        """Try them; the assertion names all that went wrong."""
        chosen = list(attacks)
        if self.at_most is not None:
            chosen = chosen[:: -(-len(chosen) // self.at_most)]
        wrong = [
            told(attack, found)
            for attack in chosen
            if (found := self.outcome(attack)).kind not in attack.may
        ]
        assert not wrong, f"{len(wrong)} attacks:\n" + "\n".join(wrong)


def told(attack: Attack, found: Outcome) -> str:
    told = f"{attack.name} ({attack.subject}, {attack.entry}): {found.kind}"
    return f"{told}: {found.text[:300]} [{found.where}] {'; '.join(found.events)[:300]}"
