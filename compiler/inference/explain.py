"""`explain`: one line per dimension, prunable ones first, then what is blocked and why."""

from __future__ import annotations

from collections import defaultdict

from torch import fx

from ..ir.program import Program
from .dimensions import STRUCTURAL, Dimension
from .rule import Inference


def explain_table(
    program: Program,
    inference: Inference,
    dimensions: dict[str, Dimension],
    members: bool = False,
) -> str:
    """The report of `Graph.explain()`: plain text, stable for a given model."""
    shown = None if members else 2
    free = [d for d in dimensions.values() if d.blocked is None]
    blocked = [d for d in dimensions.values() if d.blocked is not None]
    batch = "dynamic" if program.dynamic else "static"
    lines = [
        f"{type(program.source).__name__}: {len(program.graph.nodes)} nodes, "
        f"{len(program.tensors)} tensors, captured by {program.how} ({batch} shapes)",
        "",
        f"prunable dimensions: {len(free)}",
    ]
    width = max((len(d.name) for d in free), default=10)
    for d in free:
        how = "exact" if d.exact else f"norm-coupled: {d.statistics[0]}"
        lines.append(f"  {d.name:<{width}}  {d.kind:<11} {d.size:>6}  {_places(d, shown)}  {how}")
    kernels = [d for d in blocked if d.blocked and d.blocked.text == STRUCTURAL]
    others = [d for d in blocked if d not in kernels]
    lines += ["", f"blocked dimensions: {len(others)}"]
    for d in others:
        lines.append(f"  {d.name}  {d.size}  {_places(d, shown)}  because: {d.blocked}")
    if kernels:
        count = sum(len(d.members) for d in kernels)
        lines.append(f"  {count} kernel axes: {STRUCTURAL}, blocked by nature")
    lines += _unruled(inference)
    sizes = program.call.describe() if program.call is not None else []
    lines += [f"captured for sizes within: {text}" for text in sizes]
    lines += [f"note: {text}" for text in program.notes]
    return "\n".join(lines)


def _places(d: Dimension, shown: int | None) -> str:
    listed = d.members[:shown]
    more = f" +{len(d.members) - len(listed)}" if len(d.members) > len(listed) else ""
    return "in " + ", ".join(f"{name}[{axis}]" for name, axis in listed) + more


def _unruled(inference: Inference) -> list[str]:
    by_text: dict[str, list[fx.Node]] = defaultdict(list)
    for node, reason in inference.frozen.items():
        by_text[reason.text].append(node)
    if not by_text:
        return []
    lines = ["", "ops that froze what they touch:"]
    for text, nodes in by_text.items():
        lines.append(f"  {text}: {len(nodes)} node(s), first {nodes[0].name}")
        lines += sorted({f"    {inference.failures[n]}" for n in nodes if n in inference.failures})
    return lines
