"""One model through the default recipe: half of the parameters, on data made like its inputs."""

from __future__ import annotations

import inspect
import time
from typing import Any

from torch import nn

from prunec import compiler
from prunec.compiler import Target
from prunec.compiler.capture.examples import fresh_inputs
from prunec.compiler.quality import output_error

BATCHES = 12
SHARE = 0.5  # of the parameters
LOST = "the module back end does not hold: "


def examine_default(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """One row of the table of the default recipe; what the compile raises is for the caller.

    A target out of reach gives the best reachable: what is asked here is whether the class is kept.
    """
    began = time.perf_counter()
    calls = [fresh_inputs(args, kwargs, seed=200 + i) for i in range(BATCHES)]
    result = compiler.compile(
        model,
        args,
        kwargs=kwargs,
        target=Target(params=SHARE),
        calibration=[_batch(model, *call) for call in calls],
        options={"allocate-widths": {"best_effort": True}},
        measure=False,
    )
    report = result.report
    checks = [c for c in report.checks if c.name != "graph == model"]
    why = [note.removeprefix(LOST) for note in report.notes if note.startswith(LOST)]
    told = [n for n in report.notes if "keep the class" in n or "is not kept" in n]
    return {
        "class": type(model).__name__,
        "failures": [f"{c.name}: {c.error:.1e}" for c in checks if not c.passed],
        "proven": all(c.passed for c in checks),
        "class kept": isinstance(result.model, type(model)),
        "parameters": round(report.after.params / max(report.before.params, 1), 3),
        "error": output_error(model, result.model, calls),
        "why": " ".join(why),
        "notes": told,
        "seconds": round(time.perf_counter() - began, 2),
    }


def _batch(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """One item of calibration data: a tuple of arguments, or a dict of those with names."""
    if not kwargs:
        return tuple(args)
    named = inspect.signature(model.forward).bind_partial(*args).arguments if args else {}
    return {**named, **kwargs}
