"""The teacher's answers, computed once per batch and, where asked, kept on disk."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...compiler.capture.batches import to_device
from ...compiler.capture.examples import copied_call
from ...compiler.digest import content_digest
from .borrowed import device_of
from .features import Features, Values
from .outputs import named_outputs

_FEATURE = "feature:"


class Teacher:
    """The original model, asked without gradients.

    `cache`: a directory in which the answers to a batch are kept, under a hash of its content and
    of the teacher: a second epoch, and a second run, read instead of computing. Nothing but tensors
    is read from there.
    """

    def __init__(
        self,
        model: nn.Module,
        features: Features,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model, self.features = model, features
        self.device = device_of(model)
        self.cache = None if cache is None else pathlib.Path(cache)
        self._key = content_digest(fingerprint(model), features.paths) if cache is not None else ""

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Values]:
        """The model's output for a batch, and its features."""
        place: pathlib.Path | None = None
        if self.cache is not None:
            place = self.cache / f"{content_digest(self._key, args, kwargs)}.safetensors"
        if place is not None and place.is_file():
            with contextlib.suppress(safetensors.SafetensorError):  # a broken file is made again
                return _read(place, self.device)
        self.features.take()  # of whatever else ran the model
        with torch.no_grad():
            call = copied_call(to_device(args, self.device), to_device(kwargs, self.device))
            answer = self.model(*call[0], **call[1])
        features = self.features.take()
        if place is None:
            return answer, features
        outputs = named_outputs(answer)
        _write(place, outputs, features)
        return outputs, features


def fingerprint(model: nn.Module) -> str:
    """A digest of the model's tensors and of the plain values its modules hold."""
    plain = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and key != "training"
        if isinstance(value, (bool, int, float, str))
    }
    return content_digest(plain, dict(model.named_parameters()), dict(model.named_buffers()))


def _write(place: pathlib.Path, outputs: dict[str, Tensor], features: Values) -> None:
    held = {name: t.detach().cpu().contiguous().clone() for name, t in outputs.items()}
    for path, values in features.items():
        for call, value in enumerate(values):
            held[f"{_FEATURE}{call}:{path}"] = value.detach().cpu().contiguous().clone()
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=place.parent, suffix=".part")
    os.close(handle)
    save_file(held, scratch)
    os.replace(scratch, place)


def _read(place: pathlib.Path, device: torch.device) -> tuple[dict[str, Tensor], Values]:
    outputs: dict[str, Tensor] = {}
    features: dict[str, dict[int, Tensor]] = {}
    for name, tensor in load_file(place, device=str(device)).items():
        if name.startswith(_FEATURE):
            call, _, path = name.removeprefix(_FEATURE).partition(":")
            features.setdefault(path, {})[int(call)] = tensor
        else:
            outputs[name] = tensor
    return outputs, {path: [own[i] for i in sorted(own)] for path, own in features.items()}
