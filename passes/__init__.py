"""The built-in passes, in the order a pipeline usually has them."""

from .allocate_widths import AllocateWidths
from .distill import Distill
from .drop_layers import DropLayers
from .magnitude_score import MagnitudeScore
from .prune_channels import PruneChannels
from .prune_heads import PruneHeads
from .recalibrate_batch_norm import RecalibrateBatchNorm
from .reconstruct import Reconstruct
from .sparse_to_dense import SparseToDense

__all__ = [
    "AllocateWidths",
    "Distill",
    "DropLayers",
    "MagnitudeScore",
    "PruneChannels",
    "PruneHeads",
    "RecalibrateBatchNorm",
    "Reconstruct",
    "SparseToDense",
]
