"""The op table's rows, by family. Importing this package fills the table."""

from . import (
    attention,
    contract,
    convolution,
    create,
    fourier,
    index,
    normalize,
    pointwise,
    quantize,
    recurrent,
    reduce,
    spatial,
    view,
)

__all__ = [
    "attention",
    "contract",
    "convolution",
    "create",
    "fourier",
    "index",
    "normalize",
    "pointwise",
    "quantize",
    "recurrent",
    "reduce",
    "spatial",
    "view",
]
