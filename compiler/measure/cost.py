"""Parameters, bytes and multiply-accumulates of a graph, before and after a plan, by its terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from torch import nn

from ..capture.batch import batch_size
from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..ir.terms import Var


@dataclasses.dataclass(frozen=True)
class Cost:
    """`params`: entries of parameters; `bytes`: of parameters and buffers; `macs`: multiply-
    accumulates of linear, convolution, matrix product and attention for one sample."""

    params: int
    bytes: int
    macs: int


def cost(graph: Graph, kept: Mapping[Var, int] | None = None) -> Cost:
    """The cost when variables have the `kept` sizes (None: as captured). Exact, without building
    anything. Tensors of the model that no captured graph uses count as they are."""
    widths = dict(kept or {})
    program = graph.program
    params = size = 0
    for name, tensor in program.tensors.items():
        entries = math.prod(width_of(t, widths) for t in graph.inference.tensors[name])
        size += entries * tensor.element_size()
        params += entries if isinstance(tensor, nn.Parameter) else 0
    for name, tensor in graph.beside.items():
        entries = math.prod(width_of(t, widths) for t in graph.inference.beside[name])
        size += entries * tensor.element_size()
        params += entries if isinstance(tensor, nn.Parameter) else 0
    unused = _unused(graph)
    macs = sum(math.prod(width_of(t, widths) for t in terms) for terms in graph.inference.costs)
    batch = batch_size(program.args, program.kwargs) or 1
    return Cost(params + unused[0], size + unused[1], macs // batch)


def _unused(graph: Graph) -> tuple[int, int]:
    used = {id(t) for t in (*graph.program.tensors.values(), *graph.beside.values())}
    source = graph.source
    rest = [p for p in source.parameters() if id(p) not in used]
    held = [t for t in (*rest, *source.buffers()) if id(t) not in used]
    return sum(p.numel() for p in rest), sum(t.numel() * t.element_size() for t in held)
