"""Values along a tensor's axis, summed over the positions that each entry of a dimension owns."""

from __future__ import annotations

import torch
from torch import Tensor

from ...compiler.inference.dimensions import Dimension
from ...compiler.inference.graph import Graph
from ...compiler.rewrite.slicing import term_labels


def entry_sums(graph: Graph, dimension: Dimension, name: str, axis: int, values: Tensor) -> Tensor:
    """float64 [size]; `values`: one for each position along the axis of the tensor `name`."""
    assert dimension.var is not None
    total = torch.zeros(dimension.size, dtype=torch.float64)
    values = values.detach().double().cpu()
    for row in term_labels(graph.inference.tensors[name][axis], dimension.var):
        owned = row >= 0
        total.index_add_(0, row[owned], values[owned])
    return total


def mean_one(total: Tensor) -> Tensor:
    """Divided by its mean, so that dimensions compare; all ones where the mean is 0."""
    mean = total.mean()
    return total / mean if mean > 0 else torch.ones_like(total)
