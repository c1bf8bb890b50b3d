"""How good a model is: by the user's function, and how far its outputs are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .capture.eval_mode import eval_mode
from .capture.examples import copied_call
from .capture.untouched import untouched
from .errors import QualityError
from .user_code import as_number, call_user

Call = tuple[tuple[Any, ...], dict[str, Any]]


def score(evaluate: Callable[[nn.Module], Any], model: nn.Module, *, original: bool) -> float:
    """What `evaluate` gives for the model. Raises QualityError where that is no number, and for the
    original also where it is not finite, since nothing could be held against it."""
    name = getattr(evaluate, "name", getattr(evaluate, "__name__", "evaluate"))
    which = "original" if original else "smaller"
    given = call_user(f"{name} on the {which} model", evaluate, model)
    found = as_number(given)
    if found is None or (original and not math.isfinite(found)):
        shown = f"{type(given).__name__} ({str(given)[:80]})"
        raise QualityError(
            f"{name} gave {shown} for the {which} model: let it "
            "return one finite number, higher is better."
        )
    return found


@torch.no_grad()
def output_error(original: nn.Module, smaller: nn.Module, calls: Sequence[Call]) -> float:
    """|smaller - original|^2 / |original|^2 over the floating outputs of all calls, each output by
    its own scale, averaged; outputs of another shape are left out. nan when none remains."""
    sums: dict[int, tuple[float, float]] = {}
    with untouched(original, smaller), eval_mode(original, smaller):
        for call in calls:
            (args, kwargs), (own, named) = copied_call(*call), copied_call(*call)
            pairs = zip(
                _floats(original(*args, **kwargs)), _floats(smaller(*own, **named)), strict=False
            )
            for i, (expected, found) in enumerate(pairs):
                if expected.shape != found.shape:
                    continue
                off, scale = sums.get(i, (0.0, 0.0))
                far = (found.double() - expected.double()).square().sum()
                size = expected.double().square().sum()
                sums[i] = off + float(far), scale + float(size)
    shares = [off / scale for off, scale in sums.values() if scale > 0]
    return sum(shares) / len(shares) if shares else float("nan")


def _floats(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, dict):  # transformers' outputs, in their order
        outputs = list(outputs.values())
    leaves = tree_leaves(outputs)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
