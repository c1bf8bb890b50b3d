"""A stand-in for weights that hide mistakes: LayerScale of 1e-6, zero gammas, uniform attention.

Matrices are brought to fan-in gain 1 and vectors to an even size, with some noise, so that every
branch matters; the permutation check runs on these.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program


def rescaler(program: Program) -> Callable[[str, Tensor], Tensor]:
    """A tensor hook that gives each tensor its rescaled stand-in; the same one every time."""
    means, variances = _running_statistics(program)

    def rescale(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        if name in variances:
            return noise.abs_().mul_(0.2).add_(1)
        if name in means:
            return noise.mul_(0.1)
        if not isinstance(program.tensors[name], nn.Parameter):
            return tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)  # half precision would overflow
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=wide))
        size = norm / tensor.numel() ** 0.5
        if tensor.dim() < 2:
            base = tensor / size if 0 < size < 0.05 or size > 20 else tensor
            return base + 0.1 * noise
        gain = (tensor.shape[0] / tensor.numel()) ** 0.5
        if size == 0:
            return noise.mul_(gain)
        # in place: the largest table is all the room there is
        return noise.mul_(0.1 * gain).add_(tensor.detach(), alpha=gain / size)

    return rescale


def _running_statistics(program: Program) -> tuple[set[str], set[str]]:
    means: set[str] = set()
    variances: set[str] = set()
    for node in program.graph.nodes:
        if op_name(node.target) == "aten::batch_norm":
            given = bound_arguments(node)
            for key, names in (("running_mean", means), ("running_var", variances)):
                if given.get(key) is not None:
                    names.add(str(given[key].target))
    return means, variances
