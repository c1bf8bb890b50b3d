"""Named tensors in a safetensors file: shared ones once, strides and parameters as they were."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArtifactError
from .files import open_regular

_METADATA = "prunec"
_HEADER_LIMIT = 64 << 20
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
_DTYPES = {
    name: dtype
    for name, attribute in (
        ("F64", "float64"),
        ("F32", "float32"),
        ("F16", "float16"),
        ("BF16", "bfloat16"),
        ("I64", "int64"),
        ("I32", "int32"),
        ("I16", "int16"),
        ("I8", "int8"),
        ("U8", "uint8"),
        ("U16", "uint16"),
        ("U32", "uint32"),
        ("U64", "uint64"),
        ("BOOL", "bool"),
        ("C64", "complex64"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
        ("F8_E8M0", "float8_e8m0fnu"),
    )
    if (dtype := getattr(torch, attribute, None)) is not None
}


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
    with _opened(path) as (file, index):
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _named(index, stored, device)


def tensor_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` as they will be loaded, on meta: shapes, dtypes and ties without data.

    Raises:
        ArtifactError: as `load_tensors`.
    """
    with _opened(path) as (file, index):
        stored: dict[str, Tensor] = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype = _DTYPES[part.get_dtype()]
            stored[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        return _named(index, stored, "meta")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file and the index in its header."""
    descriptor = open_regular(path)
    try:
        size = int.from_bytes(os.read(descriptor, 8), "little")
    finally:
        os.close(descriptor)
    try:
        if size > _HEADER_LIMIT:
            raise ValueError("its header is too large")
        with safe_open(path, framework="pt", device="cpu") as file:
            index = json.loads((file.metadata() or {})[_METADATA])
            _check_index(index, set(file.keys()))
            yield file, index
    except ArtifactError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path.name} cannot be read ({error}): the artifact is damaged, write it again."
        ) from error


def _named(
    index: dict[str, Any], stored: dict[str, Tensor], device: torch.device | str | None
) -> dict[str, Tensor]:
    loaded: dict[tuple[Any, ...], Tensor] = {}
    named: dict[str, Tensor] = {}
    for name, entry in index.items():
        key = (entry["tensor"], entry.get("requires_grad"), tuple(entry.get("order") or ()))
        if key not in loaded:
            there = available(device or entry["device"])
            loaded[key] = _rebuilt(stored[entry["tensor"]], entry, there)
        named[name] = loaded[key]
    return named


def _check_index(index: Any, stored: set[str]) -> None:
    """Raise ValueError unless each name has a stored tensor and says plainly how it lies."""
    if not isinstance(index, dict):
        raise ValueError("it has no index of names")
    for name, entry in index.items():
        known = {"tensor", "device", "requires_grad", "order"}
        if not isinstance(entry, dict) or not {"tensor", "device"} <= set(entry) <= known:
            raise ValueError(f"the entry of {name[:60]!r} is none")
        if entry["tensor"] not in stored or not isinstance(entry["device"], str):
            raise ValueError(f"the tensor of {name[:60]!r} is missing")
        if not _DEVICE.fullmatch(entry["device"]):
            raise ValueError(f"{name[:60]!r} has no device")
        if type(entry.get("requires_grad", True)) is not bool:
            raise ValueError(f"{name[:60]!r} says neither that it is trained nor that it is not")
        order = entry.get("order", [])
        if not isinstance(order, list) or sorted(order) != list(range(len(order))):
            raise ValueError(f"{name[:60]!r} has no order of axes")


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
