"""Which part of a model's time no width can take, and in which ops it lies."""

from __future__ import annotations

from ..inference.rule import op_name
from .measured import OpTimes

FALLS = 0.5  # an op that keeps more of its time than this, at the floors, is not bound by its size
NAMED = 3


def what_bounds(times: OpTimes, left: float) -> str:
    """One sentence for people: `left` is the measured share of the original's time that stays when
    every width is at its floor; the ops named are those that stay, by what they take there."""
    stay: dict[str, float] = {}
    total = 0.0
    for name, (full, lowest) in times.extremes().items():
        total += full
        if full > 0 and lowest / full > FALLS:
            op = op_name(times.nodes[name].target).removeprefix("aten::") or name
            stay[op] = stay.get(op, 0.0) + full
    ranked = sorted(stay, key=lambda op: -stay[op])[:NAMED]
    kept = ", ".join(f"{op} {stay[op]:.2f} ms" for op in ranked)
    calls = sum(1 for n in times.nodes.values() if n.op == "call_function")
    named = f" ({kept} of {total:.2f} ms in ops with a width)" if kept else ""
    return (
        f"With every width at its floor {left:.0%} of the time stays: it goes into launching "
        f"{calls} ops and into ops that do not get faster with width{named}. Fewer layers or "
        "branches, a larger batch, or CUDA graphs and fusion (runtime=compile) would help there; "
        "narrower layers do not"
    )
