"""A hundred cases of the fuzzer, and the fuzzer itself."""

from __future__ import annotations

import pathlib
import random

import fuzz
import fuzz_mutations
import pytest
from fork_server import CLEAR, EXECUTED, ForkServer, Outcome
from fuzz_mutations import Damage, damage

CASES = range(50_000, 50_100)


@pytest.mark.parametrize("part", range(4))
def test_damaged_artifacts_are_refused_or_harmless(
    fork_server: ForkServer, subjects: pathlib.Path, tmp_path: pathlib.Path, part: int
) -> None:
    rows = [fuzz.one(fork_server, subjects, tmp_path, number, 0) for number in CASES[part::4]]
    assert [(row.case, row.outcome) for row in rows if row.wrong] == []
    assert any(row.outcome.kind == CLEAR for row in rows)


def test_a_case_is_drawn_from_its_number_and_seed(
    subjects: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def drawn(name: str, number: int, seed: int) -> tuple[Damage, list[bytes]]:
        case = damage(subjects, tmp_path / name, number, seed)
        files = sorted((tmp_path / name).rglob("*"))
        return case, [path.read_bytes() for path in files if path.is_file()]

    cases = [drawn(f"{n}-{seed}", n, seed) for n in range(8) for seed in (0, 1)]
    again = [drawn(f"{n}-{seed}-again", n, seed) for n in range(8) for seed in (0, 1)]
    assert cases == again
    assert len({str(case) for case, _ in cases}) == len(cases)


def test_what_went_wrong_is_counted_by_type_and_place() -> None:
    case = Damage(7, "cnn", "load", False, [])
    failed = Outcome("other exception", "KeyError: 'x'", "compiler/plan.py:read")
    rows = [fuzz.Row(case, failed)] * 2
    rows += [fuzz.Row(case, Outcome(EXECUTED)), fuzz.Row(case, Outcome(CLEAR))]
    table = fuzz.summary(rows)
    counts = {row["outcome"]: row["not fitted"] for row in table if "outcome" in row}
    assert (counts["other exception"], counts[EXECUTED], counts[CLEAR]) == (2, 1, 1)
    places = [(row["type"], row["place"], row["count"]) for row in table if "wrong" in row]
    assert places == [("KeyError", "compiler/plan.py:read", 2), (EXECUTED, "", 1)]


def test_damage_never_reaches_through_a_link(tmp_path: pathlib.Path) -> None:
    outside, place = tmp_path / "outside", tmp_path / "artifact"
    outside.write_text('{"checksums": {"plan.json": "0"}}')
    place.mkdir()
    for name in ("prunec.json", "plan.json", "weights.safetensors"):
        (place / name).symlink_to(outside)
    for kind in fuzz_mutations._KINDS:
        kind(place, [], random.Random(0))
    fuzz_mutations.fit(place)
    assert outside.read_text() == '{"checksums": {"plan.json": "0"}}'
    assert all(path.is_symlink() for path in place.iterdir())
