"""Which rows of a layer's input are tokens, and which are padding that teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from ...compiler.ir.program import Program, fake_value

MASK = "attention_mask"
_DECODER = "decoder_"


class TokenMasks:
    """The attention masks of each batch, by the program's arguments of that name.

    A mask is [batch, length], above 0 at tokens; other forms are not read. Values that depend on a
    `decoder_` argument have the decoder's positions, all others the encoder's.
    """

    def __init__(self, program: Program, batches: Sequence[Sequence[Any]]) -> None:
        self._masks = [_masks(program, flat) for flat in batches]
        self._decoder: set[str] = set()
        starts = tuple(n for n in program.argument_names if n.startswith(_DECODER))
        for node in program.graph.nodes:
            own = node.op == "placeholder" and node.name.startswith(starts or "\0")
            fed = any(x.name in self._decoder for x in node.all_input_nodes)
            # a size is shared by both: it may be read off either
            size = isinstance(fake_value(node), (int, torch.SymInt))
            if own or (fed and not size):
                self._decoder.add(node.name)

    def rows(self, node: fx.Node, batch: int, shape: Sequence[int]) -> Tensor | None:
        """True at the tokens among the rows of the node's value, flat; None: all of them count.

        `shape`: the axes of the value that count rows, [batch, length] or their product.
        """
        prefix = _DECODER if node.name in self._decoder else ""
        mask = self._masks[batch].get(prefix + MASK)
        if mask is None or list(shape) not in ([*mask.shape], [mask.numel()]):
            return None
        return mask.reshape(-1) > 0


def _masks(program: Program, flat: Sequence[Any]) -> dict[str, Tensor]:
    args, kwargs = pytree.tree_unflatten(list(flat), program.in_spec)
    named = dict(zip(program.argument_names, (*args, *kwargs.values()), strict=False))
    return {
        name: value
        for name, value in named.items()
        if name.endswith(MASK) and isinstance(value, Tensor) and value.dim() == 2
    }
