"""What a compile tells: sizes, times, every dimension, every pass, every error measured."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from .console import PlainTable, plain_console
from .measure.cost import Cost
from .measure.timing import Comparison
from .onnx_files.export import OnnxReport
from .onnx_files.quantize import QuantizeReport
from .verify.check import NOT_PROVEN, PROVEN, Check, headline


@dataclasses.dataclass(frozen=True)
class PassReport:
    """One pass of the pipeline: its options, its one-line summary, details, wall seconds."""

    name: str
    options: dict[str, Any]
    summary: str
    details: dict[str, Any]
    seconds: float


@dataclasses.dataclass(frozen=True)
class DimensionReport:
    """One dimension: how many entries it had and has, and why ("pruned", "kept", "blocked",
    "dropped" with the branches that held it)."""

    name: str
    kind: str
    before: int
    after: int
    state: str
    reason: str


@dataclasses.dataclass(frozen=True)
class BranchReport:
    """One branch or block that could be dropped: "dropped" or "kept", and why. `error`: the
    relative squared error of the outputs without it, when it was dropped or last looked at."""

    name: str
    unit: str
    state: str
    reason: str
    error: float | None = None
    parameters: int = 0


@dataclasses.dataclass(frozen=True)
class Aim:
    """A target, and its quantity as predicted and as measured (None: not measured, or counts that
    need no prediction)."""

    asked: str
    predicted: float | None = None
    measured: float | None = None


@dataclasses.dataclass
class Report:
    """Everything measured in one compile. Sizes are for the whole model, MACs for one sample."""

    model: str
    emitted: str
    before: Cost
    after: Cost
    dimensions: list[DimensionReport]
    passes: list[PassReport]
    checks: list[Check]
    branches: list[BranchReport] = dataclasses.field(default_factory=list)
    latency: list[Comparison] = dataclasses.field(default_factory=list)
    onnx: OnnxReport | None = None
    int8: QuantizeReport | None = None
    quality: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    disk: tuple[int, int] | None = None
    target: str = ""
    aim: Aim | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What calls may vary: "axes", as `CallSpec.axes`, and "within", the bounds for people."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        data = {"headline": self.headline, "proven": self.proven, **dataclasses.asdict(self)}
        data["checks"] = [check.to_json() for check in self.checks]
        data["latency"] = [timing.to_json() for timing in self.latency]
        data["int8"] = self.int8.to_json() if self.int8 is not None else None
        data["onnx"] = self.onnx.to_json() if self.onnx is not None else None
        return json.loads(json.dumps(data, default=str))

    @property
    def headline(self) -> str:
        """The first line: which checks prove nothing, and why; '' where all do."""
        return headline(self.checks)

    @property
    def proven(self) -> bool:
        """Whether checks were run and every one that was proves what it says."""
        return not self.headline and any(c.state == PROVEN for c in self.checks)

    def tables(self) -> list[Table]:
        """The tables people are shown: sizes, quality, dropped branches, target, speed, checks."""
        found = (
            self._sizes(),
            self._branches(),
            self._aim(),
            self._speed(),
            self._checks(),
        )
        return [t for t in found if t.row_count]

    def _sizes(self) -> Table:
        title = f"{self.model}" + (f", target {self.target}" if self.target else "")
        table = PlainTable(title=title, title_justify="left")
        for column in ("", "before", "after", "kept"):
            table.add_column(column, justify="left" if not column else "right")
        rows: list[tuple[str, float, float]] = [
            ("parameters", self.before.params, self.after.params),
            ("MACs (one sample)", self.before.macs, self.after.macs),
            ("bytes in memory", self.before.bytes, self.after.bytes),
        ]
        if self.disk is not None:
            rows.append(("bytes of weights on disk", *self.disk))
        for name, old, new in rows:
            share = f"{new / old:.1%}" if old else "-"
            table.add_row(name, f"{old:,.0f}", f"{new:,.0f}", share)
        for name, (old, new) in self.quality.items():
            table.add_row(name, f"{old:.4f}", f"{new:.4f}", _kept(old, new))
        return table

    def _branches(self) -> Table:
        gone = [b for b in self.branches if b.state == "dropped"]
        title = f"{len(gone)} branches and blocks dropped of {len(self.branches)}"
        table = PlainTable(title=title, title_justify="left")
        for column in ("dropped", "parameters", "output error", "in its place"):
            right = column in ("parameters", "output error")
            table.add_column(column, justify="right" if right else "left")
        for b in gone:
            error = "-" if b.error is None else f"{b.error:.1e}"
            table.add_row(f"{b.unit} {b.name}", f"{b.parameters:,}", error, b.reason)
        return table

    def _aim(self) -> Table:
        table = PlainTable(title="target", title_justify="left")
        for column in ("asked", "predicted", "measured"):
            table.add_column(column)
        if self.aim is not None and self.aim.measured is not None:
            numbers = (self.aim.predicted, self.aim.measured)
            table.add_row(self.aim.asked, *("-" if n is None else f"{n:.3g}" for n in numbers))
        return table

    def _speed(self) -> Table:
        table = PlainTable(title="speed, measured side by side", title_justify="left")
        for column in ("runtime", "batch", "before ms", "after ms", "ratio", "95 %", "A/A"):
            table.add_column(column, justify="right" if column != "runtime" else "left")
        for c in self.latency:
            table.add_row(
                c.runtime,
                str(c.batch or "-"),
                _spread(c.before),
                _spread(c.after),
                f"{c.ratio:.2f}x",
                f"{c.ratio_low:.2f}-{c.ratio_high:.2f}",
                f"{c.control:.2f}",
            )
        if self.latency:
            c = self.latency[0]
            shown = ("torch", "onnxruntime", "transformers", "python")
            versions = ", ".join(f"{k} {c.versions[k]}" for k in shown if c.versions.get(k))
            name = c.versions.get("device_name") or c.device
            threads = f"{c.threads} thread{'s' if c.threads != 1 else ''}"
            table.caption = f"{name}, {c.dtype}, {threads}; {versions}"
            table.caption_justify = "left"
        return table

    def _checks(self) -> Table:
        table = PlainTable(title="errors measured", title_justify="left")
        for column in ("check", "relative error", "judged in", ""):
            table.add_column(column)
        for check in self.checks:
            error = "not run" if check.error is None else f"{check.error:.1e}"
            note = check.skipped
            if check.sensitivity is not None:
                note = f"a mistake on purpose moves it by {check.sensitivity:.1e}"
            if check.state == NOT_PROVEN:
                note = f"not proven: {check.unproven}"
            table.add_row(check.name, error, check.dtype, note)
        if self.onnx is not None:
            table.add_row(
                "ONNX == module",
                f"{self.onnx.max_rel_error:.1e}",
                "onnxruntime",
                f"largest difference {self.onnx.max_abs_error:.1e}, opset {self.onnx.opset}, "
                + "; ".join([self.onnx.axes(), *self.onnx.notes]),
            )
        if self.int8 is not None:
            table.add_row(
                "int8 == model",
                f"{self.int8.rms_error:.1e}",
                "onnxruntime",
                f"root mean square; {self.int8.mode}, {self.int8.quantized} nodes of"
                f" {self.int8.weight_bits}-bit weights,"
                f" {self.int8.bytes_before:,} -> {self.int8.bytes:,} bytes",
            )
        return table

    def __str__(self) -> str:
        stream = io.StringIO()
        console = plain_console(stream, 110)
        self.print(console)
        return stream.getvalue()

    def print(self, console: Console) -> None:
        """Write the tables and notes to a console; before all, what is not proven."""
        if self.headline:
            console.print(self.headline, style="bold red", markup=False, highlight=False)
        for table in self.tables():
            console.print(table)
        states = Counter(d.state for d in self.dimensions)
        gone = f", {states['dropped']} gone with dropped branches" if states["dropped"] else ""
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        console.print(
            f"{states['pruned']} dimensions pruned, {states['kept']} kept, "
            f"{states['blocked']} blocked{gone}; emitted as {self.emitted}",
            **plain,
        )
        for note in self.notes:
            console.print(f"note: {note}", **plain)


def _kept(old: float, new: float) -> str:
    """The share of a quality that is left; below 0 its change counts against its size."""
    return f"{1 + (new - old) / abs(old):.1%}" if old else "-"


def _spread(timing: Any) -> str:
    return f"{timing.median_ms:.1f} ({timing.low_ms:.1f}-{timing.high_ms:.1f})"
