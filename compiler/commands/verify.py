"""`prunec verify`."""

from __future__ import annotations

import pathlib

from rich.console import Console
from rich.table import Table

from ..artifact.check import check_artifact, prove_artifact
from ..errors import VerificationError
from ..verify.oracles import Check
from .open_model import open_model


def verify_command(
    directory: pathlib.Path, original: str | None, inputs: list[str] | None, console: Console
) -> None:
    """Check an artifact and print what was and what was not proved. Raises VerificationError."""
    checks = check_artifact(directory)
    if original is not None:
        source = open_model(original, inputs)
        checks += prove_artifact(directory, source.model.eval(), source.args, source.kwargs)
    console.print(_table(checks))
    if original is None:
        console.print(
            "not re-proved without --original MODEL: that the dense model equals its masked "
            "original"
        )
    failed = [c for c in checks if not c.passed]
    if failed:
        raise VerificationError(f"{failed[0].name} failed: relative error {failed[0].error}.")
    console.print("verified")


def _table(checks: list[Check]) -> Table:
    table = Table(title="checks", title_justify="left")
    for column in ("check", "relative error", "judged in", ""):
        table.add_column(column)
    for c in checks:
        error = "-" if c.error is None else f"{c.error:.1e}"
        table.add_row(c.name, error, c.dtype, c.skipped or ("ok" if c.passed else "FAILED"))
    return table
