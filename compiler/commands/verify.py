"""`prunec verify`."""

from __future__ import annotations

import pathlib

from rich.console import Console
from rich.table import Table

from ..artifact.check import check_artifact, prove_artifact
from ..console import PlainTable
from ..errors import VerificationError
from ..verify.check import FAILED, NOT_PROVEN, PROVEN, Check, headline, require_proven
from .open_model import open_model


def verify_command(
    directory: pathlib.Path,
    original: str | None,
    inputs: list[str] | None,
    console: Console,
    strict: bool = False,
) -> None:
    """Check an artifact and print what was and what was not proved. Raises VerificationError when
    a check failed and, with `strict`, when one proves nothing."""
    checks = check_artifact(directory)
    if original is not None:
        source = open_model(original, inputs)
        checks += prove_artifact(directory, source.model.eval(), source.args, source.kwargs)
    if headline(checks):
        console.print(headline(checks), style="bold red", markup=False, highlight=False)
    console.print(_table(checks))
    if original is None:
        console.print(
            "not re-proved without --original MODEL: that the dense model equals its masked "
            "original"
        )
    failed = [c for c in checks if not c.passed]
    if failed:
        worst = failed[0]
        raise VerificationError(
            f"{worst.name} failed: relative error {worst.error:.1e} (limit {worst.limit:.1e}); the "
            "file is damaged or of another compile: write the artifact again."
        )
    if strict:
        require_proven(checks)
    console.print("verified" if not headline(checks) else "nothing differs; not all is proven")


def _table(checks: list[Check]) -> Table:
    table = PlainTable(title="checks", title_justify="left")
    for column in ("check", "relative error", "limit", "judged in", ""):
        table.add_column(column)
    for c in checks:
        error, limit = ("-", "-") if c.error is None else (f"{c.error:.1e}", f"{c.limit:.1e}")
        words = {PROVEN: "ok", NOT_PROVEN: f"not proven: {c.unproven}", FAILED: "FAILED"}
        table.add_row(c.name, error, limit, c.dtype, words.get(c.state, c.skipped))
    return table
