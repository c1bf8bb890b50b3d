"""docs/coverage.md from the rows of coverage.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"
EXACT, ONNX = 1e-4, 1e-3
_SAID = 300  # characters of a reason

INTRODUCTION = """# What prunec compiles

Written by `python benchmarks/coverage.py`, which makes all rows or, with names, only theirs: rows
may be of several runs, and ONNX is empty where a row was made with `--no-onnx`. {environment}

Each architecture is built at a tiny configuration with random weights (of gain one, so that
attention is not uniform), captured from inputs made from its configuration, and a random half of
**every** prunable dimension is cut: a stress test, not a policy. Then

- *masked*: dense against the user's own model, run eagerly, with everything outside
  `plan.slices()` zeroed (exact dimensions);
- *restricted*: dense against the original with its statistics taken over kept entries (all
  dimensions);
- *permuted*: a permutation of every dimension against none;
- *class kept*: whether the smaller model is of the user's own class, by the module back end;
- *ONNX*: onnxruntime against torch, on the smaller model.

Errors are relative to the largest value of the output.
"""


def ran(row: dict[str, Any]) -> bool:
    """Whether the architecture could be built and run at a tiny configuration."""
    return "skipped" not in row


def passed(row: dict[str, Any]) -> bool:
    """Whether it was captured, cut, and equal by every check."""
    return ran(row) and not row["failures"]


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The counts, as lines of markdown."""
    tried = [r for r in rows if ran(r)]
    captured = [r for r in tried if "captured" in r]
    good = [r for r in tried if passed(r)]
    how = Counter(r["captured"] for r in captured)
    exported = [r for r in good if "onnx" in r]
    onnx = sum(isinstance(r["onnx"], float) for r in exported)
    lines = [
        f"- {len(tried)} of {len(rows)} architectures run at a tiny configuration; the others are "
        "listed at the end with what stood in the way.",
        f"- captured: {len(captured)} ("
        + ", ".join(f"{n} {text}" for text, n in how.most_common())
        + ")",
        f"- every check passed: **{len(good)}**; failures, each listed with its cause: "
        f"{len(tried) - len(good)}",
        f"- class kept with every dimension halved: {sum(bool(r.get('class kept')) for r in good)}",
    ]
    if exported:
        lines.append(f"- ONNX within {ONNX:g}: {onnx} of {len(exported)}")
    return lines


def write_table(
    rows: Sequence[dict[str, Any]],
    environment: str = "",
    default: Sequence[dict[str, Any]] = (),
    default_environment: str = "",
) -> None:
    """Write the page: `rows` of every dimension halved, `default` of the default recipe."""
    lines = [INTRODUCTION.format(environment=environment), *summary(rows), ""]
    failed = [r for r in rows if ran(r) and not passed(r)]
    lines += ["## Failures", ""]
    lines += [f"- `{r['architecture']}`: {'; '.join(r['failures'])}" for r in failed] or ["None."]
    lines += ["", "## All architectures", ""]
    titles = (
        "architecture | class | captured | nodes | dimensions | blocked because | parameters left |"
        " masked | restricted | permuted | class kept | ONNX | seconds"
    )
    lines += [f"| {titles} |", "|" + " --- |" * (titles.count("|") + 1)]
    lines += [_line(r) for r in rows if ran(r)]
    lines += default_section(default, default_environment) if default else []
    lines += ["", "## Not run", ""]
    lines += [f"- `{r['architecture']}`: {r['skipped']}" for r in rows if not ran(r)]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


def default_section(rows: Sequence[dict[str, Any]], environment: str) -> list[str]:
    """The part of the page on the default recipe, as lines of markdown."""
    tried = [r for r in rows if ran(r)]
    proven = [r for r in tried if r.get("proven")]
    kept = [r for r in proven if r.get("class kept")]
    free = [r for r in kept if not r.get("notes")]
    lines = [
        "",
        "## Under the default recipe",
        "",
        "Written by `python benchmarks/coverage.py --recipe default`: each is compiled at half of "
        "its parameters, or what was reachable, with a few batches of calibration data made like "
        f"its inputs, untrained and not timed. {environment}",
        "",
        f"- {len(tried)} compiled, every check passed: **{len(proven)}**; class kept: "
        f"**{len(kept)}** ({len(kept) / max(len(proven), 1):.1%}), {len(kept) - len(free)} of "
        "those by ties or tables left whole.",
        "",
        "| architecture | class | parameters left | error | class kept | why not, or how |"
        " seconds |",
        "|" + " --- |" * 7,
    ]
    return lines + [_default_line(r) for r in tried]


def _default_line(row: dict[str, Any]) -> str:
    said = "; ".join([*row.get("failures", ()), *row.get("notes", ())])
    if not row.get("class kept"):
        said = "; ".join(filter(None, (said, row.get("why"))))
    cells = [
        row["architecture"],
        row.get("class", "-"),
        row.get("parameters", "-"),
        _error(row.get("error")),
        {True: "yes", False: "no", None: "-"}[row.get("class kept")],
        said[:_SAID] or "-",
        row.get("seconds", "-"),
    ]
    return "| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |"


def _line(row: dict[str, Any]) -> str:
    blocked = Counter(row.get("blocked", {}))
    reasons = ", ".join(
        f"{text} {n}" for text, n in blocked.most_common() if not text.startswith(_NATURAL)
    )
    cells = [
        row["architecture"],
        row.get("class", "-"),
        row.get("captured", "no").removeprefix("torch.export, "),
        row.get("nodes", "-"),
        sum(row.get("dimensions", {}).values()),
        reasons or "-",
        row.get("parameters", "-"),
        *(_error(row.get(key)) for key in ("masked eager", "restricted", "permutation")),
        {True: "yes", False: "no", None: "-"}[row.get("class kept")],
        _error(row.get("onnx")),
        row.get("seconds", "-"),
    ]
    return "| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |"


# What nothing can be done about, or is a property of the model and not of prunec.
_NATURAL = ("model input", "model output", "spatial axis", "rows of a lookup table", "size 1")


def _error(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0e}"
    return "-" if value is None else "no"
