"""Unstructured pruning: single weights set to zero, for good."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..compiler.compilation import Compilation, with_weights
from ..compiler.errors import PlanError
from ..compiler.inference.branches import fits_any
from ..compiler.pass_class import Pass, PassResult
from ..compiler.rewrite.selection import as_patterns


@dataclasses.dataclass
class SparsifyWeights(Pass):
    """Set the smallest weights of linear layers, convolutions and products to zero, by magnitude
    (L1; Han et al. 2015).

    Zeros make nothing smaller or faster by themselves: dense kernels multiply by them, and only the
    compressed file shrinks. What they can make faster: SparseToDense after this pass removes every
    entry of a dimension that became removable, and the pattern "2:4" is what sparse tensor cores
    take (`torch.sparse.to_sparse_semi_structured`, CUDA, half precision): set it after the cut,
    which takes inputs out of its groups of four. Distill after this pass keeps the zeros;
    Reconstruct would fill them, and refuses.

    Args:
        amount: the share of weights set to zero, in (0, 1). The pattern fixes its own.
        scope: "layer" takes the share of each weight tensor, "global" the smallest of all.
        pattern: "2:4" keeps the two largest of each four along the inputs; tensors whose inputs are
            no multiple of four are left alone and listed.
        include, exclude: patterns on the names of weight tensors or of modules that hold them.

    Raises:
        PlanError: options out of range, no weight that fits, or a share that rounds to none.
    """

    amount: float = 0.5
    scope: str = "layer"
    pattern: str | None = None
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None

    name: ClassVar[str] = "sparsify-weights"
    provides: ClassVar[tuple[str, ...]] = ("sparse",)

    def __post_init__(self) -> None:
        if not 0 < self.amount < 1:
            raise PlanError(f"amount is the share set to zero, in (0, 1), not {self.amount!r}.")
        if self.scope not in ("layer", "global"):
            raise PlanError(f"scope is 'layer' or 'global', not {self.scope!r}.")
        if self.pattern not in (None, "2:4"):
            raise PlanError(f"pattern is '2:4' or None, not {self.pattern!r}.")

    def run(self, state: Compilation) -> PassResult:
        program = state.dense.program if state.dense is not None else state.graph.program
        if program.is_meta:
            raise PlanError("SparsifyWeights needs weights with values: load them first.")
        weights, along = self._weights(state, program.tensors)
        left_alone: dict[str, str] = {}
        if self.pattern is not None:
            for name, tensor in list(weights.items()):
                inputs = tensor.numel() // tensor.shape[along[name]]
                if inputs % 4:
                    left_alone[name] = f"{inputs} inputs are no multiple of 4"
                    del weights[name]
            masks = {n: two_of_four(t, along[n]) for n, t in weights.items()}
        else:
            masks = smallest(weights, self.amount, per_tensor=self.scope == "layer")
        zeros = {n: float(1 - m.double().mean()) for n, m in masks.items()}
        if not any(zeros.values()):
            raise PlanError("SparsifyWeights sets nothing to zero: raise amount or widen include.")
        with torch.no_grad():
            sparse = {n: weights[n].masked_fill(~m, 0) for n, m in masks.items()}
            if state.dense is not None:
                for name, tensor in sparse.items():
                    weights[name].detach().copy_(tensor)
            else:
                state.graph = with_weights(state.graph, sparse)
        state.masks.update(masks)
        total = sum(m.numel() for m in masks.values())
        gone = sum(int((~m).sum()) for m in masks.values())
        state.notes.append(
            f"{gone / total:.1%} of the weights of {len(masks)} layers are zero; dense kernels "
            "take the same time with them, and memory is the same"
        )
        summary = f"{gone:,} of {total:,} weights of {len(masks)} layers set to zero"
        return PassResult(True, summary, {"zeros": zeros, "left alone": left_alone})

    def _weights(
        self, state: Compilation, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The weights that layers contract with, and the axis of each that makes outputs."""
        include, exclude = as_patterns(self.include), as_patterns(self.exclude)
        along: dict[str, int] = {}
        for sink in state.graph.inference.sinks:
            for node, axis in sink.operands:
                name = str(node.target)
                if node.op == "get_attr" and isinstance(tensors.get(name), nn.Parameter):
                    along[name] = 1 if axis == 0 and tensors[name].dim() == 2 else 0
        wide = [name for name in along if tensors[name].dim() >= 2]
        for pattern in (*include, *exclude):
            if wide and not fits_any(wide, pattern):
                raise PlanError(
                    f"pattern '{pattern}' fits none of the weights, named as in state_dict(): "
                    f"{', '.join(wide[:8])}{', ...' if len(wide) > 8 else ''}."
                )
        chosen = {
            name: tensors[name]
            for name in wide
            if (not include or any(fits_any([name], p) for p in include))
            and not any(fits_any([name], p) for p in exclude)
        }
        if not chosen:
            raise PlanError(
                "SparsifyWeights found no weight to set zeros in: widen include; weights are named "
                "as in state_dict()."
            )
        return chosen, along


def smallest(weights: Mapping[str, Tensor], amount: float, per_tensor: bool) -> dict[str, Tensor]:
    """Per tensor a mask, False at the share `amount` of smallest magnitude: of each, or of all."""
    names = list(weights)
    sizes = [weights[n].numel() for n in names]
    flat = [weights[n].detach().abs().reshape(-1).float() for n in names]
    groups = [[x] for x in flat] if per_tensor else [[x.cpu() for x in flat]]
    kept: list[Tensor] = []
    for group in groups:
        values = torch.cat(group)
        mask = torch.ones(len(values), dtype=torch.bool, device=values.device)
        mask[values.argsort(stable=True)[: round(amount * len(values))]] = False
        kept.append(mask)
    pieces = kept if per_tensor else list(kept[0].split(sizes))
    return {
        name: piece.reshape(weights[name].shape).to(weights[name].device)
        for name, piece in zip(names, pieces, strict=True)
    }


def two_of_four(weight: Tensor, outputs: int) -> Tensor:
    """A mask that keeps the two largest magnitudes of each four inputs; `outputs`: the axis that
    makes outputs. Ties keep the first."""
    rows = weight.detach().abs().movedim(outputs, 0)
    fours = rows.reshape(rows.shape[0], -1, 4)
    order = fours.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return mask.reshape(rows.shape).movedim(0, outputs)
