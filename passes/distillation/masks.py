"""What training holds at zero: single weights that were sparsified, or the entries of a growing
mask over the full-size model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...compiler.compilation import full_size
from ...compiler.errors import PlanError
from ...compiler.ir.drop import CONSTANT
from ...compiler.rewrite.slicing import Kept, cut_tensor, term_indices, touches
from ...compiler.weights import cut_into
from .losses import DistillError

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation


class Mask(Protocol):
    """What is zero once the share `along` (0 to 1) of the steps is done; called after each step.
    `empty`: nothing is."""

    empty: bool

    def hold(self, along: float) -> None: ...


class FixedMask:
    """Tensors of the model, which may move, each with where it may differ from zero."""

    def __init__(self, masks: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        self.masks, self.empty = masks, not masks

    @torch.no_grad()
    def hold(self, along: float) -> None:
        for weight, mask in self.masks:
            weight.mul_(mask.to(weight.device))


def share_masked(along: float) -> float:
    """The share of what goes in the end that is masked at the share `along` of the steps: fast at
    first, while much is redundant (Zhu and Gupta, "To prune, or not to prune", 2017, equation 1,
    from a sparsity of 0)."""
    return 1 - (1 - along) ** 3


class GrowingMask:
    """A copy of the full-size model in which more and more of what the plan removes is zero.

    `model`: the copy; `tensors`: its tensors by their names in the captured program. Of every
    dimension the entries that the plan removes (dead ones too) go in ascending order of score.

    Raises:
        DistillError: branches were dropped or single weights set to zero, which the full-size model
            knows nothing of; a tensor that is cut is not the model's own.
    """

    empty = False

    def __init__(self, state: Compilation, device: torch.device) -> None:
        if state.dense is None or state.plan.dropped or state.masks or state.earlier:
            what = "no dense model" if state.dense is None else "sparsified weights"
            what = "an earlier round" if state.earlier else what
            what = "dropped branches" if state.plan.dropped else what
            raise DistillError(
                f"gradual masks entries of the full-size model, which {what} cannot follow from:"
                " leave gradual out."
            )
        self.state, self.terms = state, state.graph.inference.tensors
        self.kept: Kept = state.plan.combined()
        self.model, self.tensors = full_size(state.graph, device)
        own = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        for name, tensor in self.tensors.items():
            if id(tensor) not in own and touches(self.terms[name], self.kept):
                raise DistillError(
                    f"gradual cannot mask {name}, which the model holds in no place of its own:"
                    " leave gradual out."
                )
        scores = state.scores or {}
        self.order: dict[Any, Tensor] = {}
        for dimension in state.graph.prunable.values():
            if dimension.var in self.kept:
                gone = torch.ones(dimension.size, dtype=torch.bool)
                gone[self.kept[dimension.var]] = False
                entries = gone.nonzero().reshape(-1)
                score = scores.get(dimension.name, torch.zeros(dimension.size)).cpu()
                self.order[dimension.var] = entries[score[entries].argsort(stable=True)]
        self.masked: dict[Any, int] = dict.fromkeys(self.order, 0)
        self._zeros: list[tuple[Tensor, int, Tensor]] = []

    @torch.no_grad()
    def hold(self, along: float) -> None:
        share = share_masked(along)
        masked = {var: round(share * len(order)) for var, order in self.order.items()}
        if masked != self.masked:
            self.masked = masked
            self._zeros = self._places()
        for tensor, axis, places in self._zeros:
            tensor.index_fill_(axis, places, 0)

    def _places(self) -> list[tuple[Tensor, int, Tensor]]:
        """The slices of every masked entry: a tensor, an axis of it, positions along that."""
        stay: dict[Any, Tensor] = {}
        for var, order in self.order.items():
            here = torch.ones(var.size, dtype=torch.bool)
            here[order[: self.masked[var]]] = False
            stay[var] = here.nonzero().reshape(-1)
        found: list[tuple[Tensor, int, Tensor]] = []
        for name, terms in self.terms.items():
            for axis, term in enumerate(terms):
                if name in self.tensors and touches([term], stay):
                    tensor = self.tensors[name]
                    gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
                    gone[term_indices(term, stay)] = False
                    places = gone.nonzero().reshape(-1).to(tensor.device)
                    found.append((tensor, axis, places))
        return found

    @torch.no_grad()
    def cut(self) -> None:
        """Put the weights, cut as the plan says, into the dense model, in place; biases and
        constants that the rewrite or a repair added are then zero.

        Raises:
            DistillError: a tensor of the dense model with no counterpart.
        """
        assert self.state.dense is not None
        dense = self.state.dense.program.tensors
        try:
            rest = cut_into(self.state, self.tensors)
        except PlanError as error:
            raise DistillError(f"gradual cannot cut the model: {error} Leave it out.") from error
        for name in rest:
            tensor = dense[name]
            if name.startswith(CONSTANT) or isinstance(tensor, nn.Parameter):
                tensor.detach().zero_()
            elif tensor.is_floating_point():  # others are indices that the rewrite computed
                raise DistillError(
                    f"gradual knows no counterpart of {name} in the full-size model: leave gradual"
                    " out."
                )

    def carry(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
        """Give the optimizer of the dense model the moments of the full-size one's, cut alike."""
        assert self.state.dense is not None
        trained = {id(p) for group in new.param_groups for p in group["params"]}
        dense, scaled_too = self.state.dense.program.tensors, self.state.plan.scales
        for name, full in self.tensors.items():
            # the gradient of a scaled weight is another one
            own = dense.get(name) if name not in scaled_too else None
            if own is not None and id(own) in trained and full in old.state:
                new.state[own] = {
                    key: self._cut(name, value) if value.shape == full.shape else copy.copy(value)
                    for key, value in old.state[full].items()
                }

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        return cut_tensor(tensor.detach(), self.terms[name], self.kept)
