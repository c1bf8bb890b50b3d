"""The nets that benchmarks train, kept in a folder between runs where one is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_transformer
import digits_vit
import plain_digits
from safetensors.torch import load_model, save_model
from torch import nn

_NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module]]] = {
    "digits": (plain_digits.PlainNet, plain_digits.trained),
    "bytes": (byte_transformer.ByteTransformer, byte_transformer.trained),
    "vit": (digits_vit.untrained, digits_vit.trained),
}


def kept(folder: Path | None, name: str, seed: int) -> Any:
    """The net trained from this seed, read from the folder if it has it, else put there."""
    make, train = _NETS[name]
    if folder is None:
        return train(seed)
    path = folder / f"{name}-{seed}.safetensors"
    if path.exists():
        model = make().eval()
        load_model(model, path)
        return model
    model = train(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path))
    return model
