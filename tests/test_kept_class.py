"""The user's class survives the default recipe: what it needs equal is tied, tables stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets_of_detection import RepLike, ShuffleNetLike, YoloLike
from nets_of_diffusion import (
    AutoencoderLike,
    ConformerLike,
    DiTLike,
    SamplingAutoencoder,
    UNetLike,
)
from torch import nn

from prunec import compiler
from prunec.compiler import Result, Target

NETS = (
    YoloLike,
    ShuffleNetLike,
    RepLike,
    UNetLike,
    AutoencoderLike,
    SamplingAutoencoder,
    ConformerLike,
    DiTLike,
)


def made(net: type[nn.Module]) -> Any:
    """Weights at which every part counts, statistics that are not those of a fresh norm."""
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 1.5)
            if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                if m.weight is not None:
                    m.weight.uniform_(0.5, 1.5)
                    m.bias.normal_(0, 0.3)
    return model.eval()


def halved(net: type[nn.Module], data: bool, **options: Any) -> Result:
    model = made(net)
    args = model.example()
    batches = [model.example(16) for _ in range(4)] if data else None
    options = {"target": Target(params=0.5), "measure": False, **options}
    call = args if isinstance(args, tuple) else (args,)
    return compiler.compile(model, call, calibration=batches, **options)


QUICK = (YoloLike, ShuffleNetLike, AutoencoderLike)


@pytest.mark.parametrize("data", [False, True], ids=["no data", "data"])
@pytest.mark.parametrize(
    "net", [net if net in QUICK else pytest.param(net, marks=pytest.mark.slow) for net in NETS]
)
def test_published_structures_keep_their_class(net: type[nn.Module], data: bool) -> None:
    result = halved(net, data)
    assert type(result.model) is net, result.report.notes
    assert result.report.after.params <= 0.5 * result.report.before.params
