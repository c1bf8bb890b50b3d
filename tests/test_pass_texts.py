"""Passes and rewrites, text against text: the programs of `pass_texts/`, one file a case.

A file holds the passes by their names in recipes, with options, then what goes in and what comes
out, as `Graph.text()` and `Result.text()` print them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from prunec.compiler import Pass, check_pass
from prunec.compiler.capture.from_text import module_from_text
from prunec.compiler.errors import CaptureError
from prunec.compiler.registry import pass_class

CASES = sorted((Path(__file__).parent / "pass_texts").glob("*.txt"))
MLP = """
    inputs
      %0: f32[3, 8]
    tensors
      up.weight: f32[up:hidden(16), 8]
      down.weight: f32[4, up:hidden(16)]
    graph
      %1 = linear(%0, up.weight)  f32[3, up:hidden(16)]
      %2 = linear(%1, down.weight)  f32[3, 4]
      return [%2]
"""


def passes_of(text: str) -> list[Pass]:
    """`prune-channels ratio=0.5`, one a line."""
    made = []
    for line in text.strip().splitlines():
        name, *options = re.findall(r"(?:\S*\[.*?\])|\S+", line)
        given = dict(option.split("=", 1) for option in options)
        made.append(pass_class(name)(**{k: ast.literal_eval(v) for k, v in given.items()}))
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_this_program_in_that_program_out(case: Path) -> None:
    passes, before, after = re.split(r"^--- \w+\n", case.read_text(), flags=re.M)[1:]
    check_pass(before, after, passes_of(passes))


def test_the_cases_are_found() -> None:
    assert len(CASES) >= 30


def test_a_difference_shows_the_lines() -> None:
    after = MLP.replace("(16)", "(16->8)").replace("(16->8), 8]", "(16->7), 8]")
    steps = passes_of("magnitude-score\nprune-channels ratio=0.5")
    with pytest.raises(AssertionError) as raised:
        check_pass(MLP, after, steps)
    changed = [line for line in str(raised.value).splitlines() if line.startswith(("-  ", "+  "))]
    assert changed == [
        "-  up.weight: f32[up:hidden(16->7), 8]",
        "+  up.weight: f32[up:hidden(16->8), 8]",
    ]


def test_a_program_that_is_captured_as_another_is_no_before() -> None:
    with pytest.raises(AssertionError, match="before, found"):
        check_pass(MLP.replace("up:hidden", "up:channel"), MLP, passes_of("magnitude-score"))


@pytest.mark.parametrize(
    "line", ["%1 = linaer(%0)", "%1 = linear(%7)", "up.weight: f33[2]", "nonsense"]
)
def test_a_line_that_is_none_is_named(line: str) -> None:
    section = "tensors" if ":" in line else "graph"
    with pytest.raises(CaptureError, match="no line of a program"):
        module_from_text(f"inputs\n  %0: f32[3, 8]\n{section}\n  {line}\n")
