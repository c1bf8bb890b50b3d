"""Parameters, bytes and multiply-accumulates of a graph, before and after a plan, by its terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from torch import Tensor, nn

from ..capture.batch import batch_size
from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..ir.terms import Term, Var
from ..rewrite.slicing import Kept, kept_size


@dataclasses.dataclass(frozen=True)
class Cost:
    """`params`: entries of parameters; `bytes`: of parameters and buffers; `macs`: multiply-
    accumulates of linear, convolution, matrix product and attention for one sample."""

    params: int
    bytes: int
    macs: int


def cost(graph: Graph, kept: Mapping[Var, int] | Kept | None = None) -> Cost:
    """The cost when variables have the `kept` sizes, or keep those entries (None: as captured).

    Nothing is built. Exact; from sizes alone, what selects entries by number counts with the share
    that its base keeps. Tensors that no captured graph uses count as they are.
    """
    entries = {v: k for v, k in (kept or {}).items() if isinstance(k, Tensor)}
    sizes = {v: k for v, k in (kept or {}).items() if isinstance(k, int)}

    def width(term: Term) -> int:
        return kept_size(term, entries) if entries else width_of(term, sizes)

    program = graph.program
    params = size = 0
    for name, tensor in program.tensors.items():
        count = math.prod(map(width, graph.inference.tensors[name]))
        size += count * tensor.element_size()
        params += count if isinstance(tensor, nn.Parameter) else 0
    for name, tensor in graph.beside.items():
        count = math.prod(map(width, graph.inference.beside[name]))
        size += count * tensor.element_size()
        params += count if isinstance(tensor, nn.Parameter) else 0
    unused = _unused(graph)
    macs = sum(math.prod(map(width, terms)) for _, terms in graph.inference.costs)
    batch = batch_size(program.args, program.kwargs) or 1
    return Cost(params + unused[0], size + unused[1], macs // batch)


def _unused(graph: Graph) -> tuple[int, int]:
    """Entries and bytes of what no captured graph reads; what a dropped branch read is gone."""
    used = {id(t) for t in (*graph.whole.program.tensors.values(), *graph.whole.beside.values())}
    source = graph.source
    rest = [p for p in source.parameters() if id(p) not in used]
    held = [t for t in (*rest, *source.buffers()) if id(t) not in used]
    return sum(p.numel() for p in rest), sum(t.numel() * t.element_size() for t in held)
