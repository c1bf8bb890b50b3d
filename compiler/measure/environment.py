"""Where a number was measured: device, threads, library versions. No host names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "onnxruntime", "onnx", "transformers")


def describe(
    device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The measuring environment as JSON types.

    `threads` are torch's intra-op threads; `load` is the one-minute load average before the
    measurement (None where the system has none); `dtype` is torch's default unless given. A
    library that is not installed is None. On CUDA also `capability`, `cuda`,
    `driver` (the CUDA version it serves), `cudnn`, `tf32`.
    """
    device = torch.device(device)
    facts: dict[str, Any] = {
        "device": device.type,
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "dtype": dtype_name(dtype or torch.get_default_dtype()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _version(name) for name in _LIBRARIES},
    }
    if device.type == "cuda":
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _driver_version()
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` as "float32"."""
    return str(dtype).removeprefix("torch.")


def _driver_version() -> int | None:
    """The newest CUDA version the driver serves, as 12040 for 12.4."""
    asked = getattr(torch._C, "_cuda_getDriverVersion", None)
    return asked() if asked is not None else None


def _version(library: str) -> str | None:
    module = sys.modules.get(library)
    if module is not None and isinstance(getattr(module, "__version__", None), str):
        return str(module.__version__)
    # onnxruntime-gpu and the like ship the module under another distribution name.
    for name in (library, f"{library}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
