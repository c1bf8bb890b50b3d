"""Named tensors in a safetensors file: shared ones once, strides and parameters as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArtifactError

_METADATA = "prunec"


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write `tensors` to `path`; names of one tensor (tied weights) share one stored copy.

    Two views of one storage that differ in shape, offset or strides are stored apart: their tie
    is not kept.

    Raises:
        ArtifactError: a tensor is not a plain dense one with storage.
    """
    stored: dict[str, Tensor] = {}
    index: dict[str, Any] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        _check(name, tensor)
        same = first.setdefault(_identity(tensor), name)
        entry: dict[str, Any] = {"tensor": same, "device": str(tensor.device)}
        if isinstance(tensor, nn.Parameter):
            entry["requires_grad"] = tensor.requires_grad
        order = _memory_order(tensor)
        if order != list(range(tensor.dim())):
            entry["order"] = order
        index[name] = entry
        if same == name:
            value = tensor.detach().permute(order).contiguous()
            # safetensors refuses two tensors in one storage.
            stored[name] = (
                value.clone() if value.untyped_storage().data_ptr() in storages else value
            )
            storages.add(value.untyped_storage().data_ptr())
    save_file(stored, path, metadata={_METADATA: json.dumps(index)})


def load_tensors(path: Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """The tensors of `path` in their order, tied ones as one object.

    They come on `device`; None: on the one they were saved from, or the CPU where that is missing.

    Raises:
        ArtifactError: the file is missing, damaged, or not written by `save_tensors`.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            index = json.loads((file.metadata() or {})[_METADATA])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        loaded: dict[tuple[Any, ...], Tensor] = {}
        named: dict[str, Tensor] = {}
        for name, entry in index.items():
            key = (entry["tensor"], entry.get("requires_grad"))
            if key not in loaded:
                loaded[key] = _rebuilt(
                    stored[entry["tensor"]], entry, available(device or entry["device"])
                )
            named[name] = loaded[key]
        return named
    except FileNotFoundError as error:
        raise ArtifactError(
            f"The artifact has no {path.name}: it is incomplete, write it again."
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path.name} cannot be read ({error}): the artifact is damaged, write it again."
        ) from error


def available(device: torch.device | str) -> torch.device:
    """`device` if this machine has it, else its first one of that kind, else the CPU."""
    device = torch.device(device)
    if device.type in ("cpu", "meta"):
        return device
    backend = getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        return torch.device("cpu")
    if device.index is not None and device.index >= backend.device_count():
        return torch.device(device.type, 0)
    return device


def _check(name: str, tensor: Any) -> None:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not plain or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ArtifactError(
            f"{name} is no plain dense tensor ({type(tensor).__name__}) and cannot be stored:"
            " materialise it as a torch.Tensor first."
        )


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.numel() == 0:
        return (id(tensor),)
    shape, strides = tuple(tensor.shape), tensor.stride()
    return tensor.data_ptr(), tensor.dtype, str(tensor.device), shape, strides


def _memory_order(tensor: Tensor) -> list[int]:
    """The axes from the outermost in memory to the innermost, when the tensor fills its memory.

    Kernels choose by memory format, so channels_last weights must come back as such.
    """
    order = sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride(axis), axis))
    return order if tensor.permute(order).is_contiguous() else list(range(tensor.dim()))


def _rebuilt(stored: Tensor, entry: dict[str, Any], device: torch.device) -> Tensor:
    tensor = stored.to(device)
    order = entry.get("order")
    if order is not None:
        tensor = tensor.permute([order.index(axis) for axis in range(len(order))])
    grad = entry.get("requires_grad")
    return tensor if grad is None else nn.Parameter(tensor, requires_grad=grad)
