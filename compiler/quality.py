"""How far the outputs of a compressed model are from the original's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .capture.eval_mode import eval_mode

Call = tuple[tuple[Any, ...], dict[str, Any]]


@torch.no_grad()
def output_error(original: nn.Module, smaller: nn.Module, calls: Sequence[Call]) -> float:
    """|smaller - original|^2 / |original|^2 over the floating outputs of all calls, each output by
    its own scale, averaged; outputs of another shape are left out. nan when none remains."""
    sums: dict[int, tuple[float, float]] = {}
    with eval_mode(original, smaller):
        for args, kwargs in calls:
            pairs = zip(
                _floats(original(*args, **kwargs)), _floats(smaller(*args, **kwargs)), strict=False
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
