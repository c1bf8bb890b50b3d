"""docs/reliability.md from the rows of reliability.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"

INTRODUCTION = """# Reliability

Written by `python benchmarks/reliability.py` on {date}, {machine}, torch {torch},
transformers {transformers}.

An artifact is data: `compiler.load` and `prunec verify` look names up in closed tables and execute,
import and open nothing that a file names. What was made is never lost to a later failure, and an
artifact is replaced in one step.
"""

FUZZ = """
## Damaged artifacts

`benchmarks/fuzz.py {cases} --seed {seed}`, {when}, {seconds} s: artifacts of a plain CNN, of a
graph module, of a BERT and of a Llama are damaged (bits, lengths, JSON types and values, deletions,
files of other artifacts) and opened, each in a process of its own with limits on memory and time,
in which every audit event is watched. With *fitted* checksums the damage is hidden from them, as
one who can recompute them would do; other outputs are then expected, since weights may be any.

| outcome | checksums fitted | not fitted |
|---|---|---|
"""

ATTACKS = """
## Attacks

`pytest tests/hostile`: forged names, configurations, plans, weight files, graphs, links and
devices, with fitted checksums; each in a process of its own. What an attack may come to is a clear
error or a model that is the artifact's own.

| topic | attack | cases | held |
|---|---|---|---|
"""

KILLS = """
## Killed saves

`tests/killed_saves.py`: a save is killed (`kill -9`) at moments spread over all its system calls.
Afterwards the place holds the old artifact or the new one, whole, or, where there was none, nothing
or the new one; the next run clears what the killed one left.

| exchange | place | kills | old artifact | nothing | new artifact | leftovers cleared | wrong |
|---|---|---|---|---|---|---|---|
"""


def write_table(rows: dict[str, Any], date: str, machine: dict[str, Any]) -> None:
    """Write the page."""
    about, *outcomes = rows["fuzz"]
    text = INTRODUCTION.format(
        date=date,
        machine=machine["device_name"],
        torch=machine["torch"],
        transformers=machine["transformers"],
    )
    text += FUZZ.format(**about, when=rows["fuzz date"])
    for row in outcomes:
        if "outcome" in row:
            text += f"| {row['outcome']} | {row['fitted']:,} | {row['not fitted']:,} |\n"
    wrong = [row for row in outcomes if "wrong" in row]
    text += "\nNone is other than it should be.\n" if not wrong else "\nWrong:\n\n"
    for row in wrong:
        place = f", at `{row['place']}`" if row["place"] else ""
        text += f"- {row['count']} of {row['wrong']}: {row['type']}{place}\n"
    text += ATTACKS
    for row in rows["attacks"]:
        topic = row["file"].removeprefix("test_").replace("_", " ")
        what = row["test"].removeprefix("test_").replace("_", " ")
        text += f"| {topic} | {what} | {row['cases']:,} | {row['passed']:,} |\n"
    text += KILLS
    for row in rows["kills"]:
        after = row["after"]
        place = "over an artifact" if row["place"] == "replace" else "where nothing was"
        cells = [
            row["how"],
            place,
            row["kills"],
            after.get("old", 0),
            after.get("nothing", 0),
            after.get("new", 0),
            after.get("with leftovers", 0),
            len(row["wrong"]),
        ]
        text += "| " + " | ".join(map(str, cells)) + " |\n"
    PAGE.write_text(text, encoding="utf-8")
