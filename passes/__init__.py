"""The built-in passes; see the README for the order a pipeline usually has."""

from .activation_score import ActivationScore
from .allocate_widths import AllocateWidths
from .batch_norm_score import BatchNormScore
from .distill import Distill
from .drop_layers import DropLayers
from .magnitude_score import MagnitudeScore
from .prune_channels import PruneChannels
from .prune_heads import PruneHeads
from .random_score import RandomScore
from .recalibrate_batch_norm import RecalibrateBatchNorm
from .reconstruct import Reconstruct
from .second_order_score import SecondOrderScore
from .sparse_to_dense import SparseToDense
from .sparsify_weights import SparsifyWeights
from .taylor_score import TaylorScore

__all__ = [
    "ActivationScore",
    "AllocateWidths",
    "BatchNormScore",
    "Distill",
    "DropLayers",
    "MagnitudeScore",
    "PruneChannels",
    "PruneHeads",
    "RandomScore",
    "RecalibrateBatchNorm",
    "Reconstruct",
    "SecondOrderScore",
    "SparseToDense",
    "SparsifyWeights",
    "TaylorScore",
]
