"""Models of timm and torchvision, where these are installed: one small variant of every family.

They have no tiny configurations; the variant with the smallest name of its family stands for it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

# How families call their small ones, the smallest first.
SMALL = "test_ atto femto pico zepto nano xxs xxt tiny _t0 _s0 _b0 mini small _xs 18 _0".split()
SIZES = (128, 224)  # pixels; a size that a model was built for comes last


def names() -> list[str]:
    """`timm:NAME` and `torchvision:NAME`, as `prunec compile` takes them; [] without either."""
    return [*_timm(), *_torchvision()]


def _timm() -> list[str]:
    if not (importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")):
        return []
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    return sorted(f"timm:{min(family, key=_size)}" for family in families.values())


def _size(name: str) -> tuple[int, int, str]:
    rank = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
    return rank, len(name), name


def _torchvision() -> list[str]:
    if not importlib.util.find_spec("torchvision"):
        return []
    from torchvision import models

    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model, random weights, in eval mode, and images it runs on.

    Raises what the package or the model raises when none of the sizes will do.
    """
    package, _, own = name.partition(":")
    if package == "timm":
        import timm

        model: Any = timm.create_model(own)
        channels, *_, side = model.default_cfg.get("input_size", (3, 224, 224))
    else:
        from torchvision import models

        model, channels, side = models.get_model(own), 3, 299
    model = model.eval()
    for size in sorted({*SIZES, side}):
        images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(images)
        except Exception:
            if size == max(*SIZES, side):
                raise
        else:
            return model, (images,)
    raise AssertionError("unreachable")
