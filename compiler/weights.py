"""Weights of the full-size model in the dense one, and those of the dense one at full size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .compilation import Compilation
from .emit.replay import scaled
from .errors import PlanError
from .rewrite.slicing import cut_tensor, spread_tensor


@torch.no_grad()
def cut_into(state: Compilation, tensors: Mapping[str, Tensor]) -> list[str]:
    """Put full-size tensors, by name in the captured program, into the dense model, in place: cut
    and scaled as the plan says. Gives the names of tensors of the dense model that are not among
    them. Raises PlanError where a shape does not come out."""
    assert state.dense is not None
    terms, kept = state.graph.inference.tensors, state.plan.combined()
    rest: list[str] = []
    for name, own in state.dense.program.tensors.items():
        if name not in tensors:
            rest.append(name)
            continue
        data = cut_tensor(tensors[name].detach(), terms[name], kept)
        factor = state.plan.scales.get(name)
        data = data if factor is None else scaled(data, factor).detach()
        if data.shape != own.shape:
            raise PlanError(
                f"{name} is cut to {list(data.shape)}, and the dense model has {list(own.shape)}."
            )
        own.detach().copy_(data)
    return rest


@torch.no_grad()
def at_full_size(state: Compilation) -> dict[str, Tensor]:
    """The dense model's floating tensors, by name in the captured program, at their full size: zero
    where entries were removed, without the scales that were moved into them."""
    assert state.dense is not None
    terms, kept = state.graph.inference.tensors, state.plan.combined()
    found: dict[str, Tensor] = {}
    for name, own in state.dense.program.tensors.items():
        if name in state.graph.program.tensors and own.is_floating_point():
            factor = state.plan.scales.get(name)
            data = own.detach() if factor is None else scaled(own, 1 / factor).detach()
            found[name] = spread_tensor(data, terms[name], kept)
    return found
