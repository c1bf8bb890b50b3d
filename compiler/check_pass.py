"""What passes do to a program, text against text: for tests of passes and rewrites."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence

from .capture.capture import capture
from .capture.from_text import module_from_text
from .pass_class import Pass
from .passmanager import PassManager
from .result import Result


def check_pass(before: str, after: str, passes: Sequence[Pass], seed: int = 0) -> Result:
    """Run passes on the program that `before` says, and compare what they made with `after`.

    Both are as `Graph.text()` and `Result.text()` print them; indentation they share is left out.
    Weights and inputs are drawn from `seed`. Raises AssertionError with the lines that differ, also
    where the program is not captured as it stands in `before`; and what the passes raise.
    """
    wanted, expected = textwrap.dedent(before).strip(), textwrap.dedent(after).strip()
    module, inputs = module_from_text(wanted, seed)
    graph = capture(module, inputs)
    _compare("before", wanted, graph.text())
    result = PassManager(passes).run(graph)
    _compare("after", expected, result.text())
    return result


def _compare(what: str, expected: str, found: str) -> None:
    if found != expected:
        lines = difflib.unified_diff(
            expected.splitlines(), found.splitlines(), f"{what}, expected", f"{what}, found", n=1
        )
        raise AssertionError("\n".join(lines) + f"\n\n{found}")
