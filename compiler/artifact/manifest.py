"""prunec.json: what an artifact is, how it is loaded, the checksums of what is read."""

from __future__ import annotations

import math
import pathlib
import re
from typing import Any

import torch
from torch import Tensor

from ..emit.row_values import DTYPES, is_finite
from ..errors import ArtifactError
from .files import MANIFEST, Files, listed_files, parse_json, read_bytes
from .place import settled

FORMAT = 2
BACKENDS = ("module", "graph")
ELEMENTS = 2**28  # of one example input
_LIMIT = 16 << 20
_CLASS = re.compile(r"[^\W\d][\w.<>]{0,400}")
_KEYS = {
    "format",
    "class",
    "backend",
    "builds",
    "recovered",
    "selection",
    "example",
    "versions",
    "checksums",
    "beside",
    "files",
}


def read_manifest(directory: str | pathlib.Path) -> dict[str, Any]:
    """The manifest, after its form was checked; files are checked as they are read.

    Raises ArtifactError for a directory that is no artifact, one of another format, and one whose
    manifest is damaged.
    """
    place = settled(directory)
    path = place / MANIFEST
    if not place.is_dir() or not _exists(path):
        raise ArtifactError(f"{place} is no prunec artifact: it has no {MANIFEST}.")
    data = parse_json(read_bytes(path, _LIMIT), path)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds no manifest: the artifact is damaged.")
    version = data.get("format")
    if type(version) is not int or version != FORMAT:
        raise ArtifactError(
            f"{place} has artifact format {str(version)[:20]}; this prunec reads {FORMAT}: compile "
            "the model again."
        )
    absent = sorted(_KEYS - set(data))
    if absent:
        raise ArtifactError(f"{path} has no '{absent[0]}': the artifact is damaged.")
    wrong = next((key for key in sorted(_KEYS) if not _fits(key, data[key])), None)
    if wrong is not None:
        raise ArtifactError(f"{path} has a '{wrong}' of no known form: the artifact is damaged.")
    listed_files(place, data["checksums"])
    return data


def files_of(directory: str | pathlib.Path, manifest: dict[str, Any]) -> Files:
    """The files that the manifest lists."""
    return listed_files(pathlib.Path(directory), manifest["checksums"])


def described(value: Any) -> Any:
    """Shape, dtype and the range of an example input: enough to draw inputs like it."""
    if isinstance(value, Tensor):
        real = value.detach().abs() if value.is_complex() else value.detach()
        spread = [float(real.min()), float(real.max())] if value.numel() else [0.0, 0.0]
        spread = [x if math.isfinite(x) else 0.0 for x in spread]
        dtype = str(value.dtype).removeprefix("torch.")
        return {"shape": list(value.shape), "dtype": dtype, "range": spread}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if isinstance(value, (bool, int, float, str)) else None


def example_value(entry: Any) -> Any:
    """What an entry that is no tensor stands for."""
    return float(entry["float"]) if isinstance(entry, dict) else entry


def is_tensor(entry: Any) -> bool:
    """Whether an entry of the example describes a tensor."""
    return isinstance(entry, dict) and "shape" in entry


def _exists(path: pathlib.Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _fits(key: str, value: Any) -> bool:
    if key == "class":
        return isinstance(value, str) and _CLASS.fullmatch(value) is not None
    if key == "backend":
        return isinstance(value, str) and value in BACKENDS
    if key in ("builds", "recovered"):
        return type(value) is bool
    if key == "selection":
        whole = isinstance(value, list) and len(value) <= 100_000
        return value is None or (whole and all(type(x) is int and 0 <= x < 10**6 for x in value))
    if key == "example":
        return isinstance(value, list) and len(value) <= 100_000 and all(map(_is_entry, value))
    if key == "files":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key in ("versions", "beside"):
        pairs = value.items() if isinstance(value, dict) else [(0, 0)]
        return all(isinstance(k, str) and isinstance(v, str) for k, v in pairs)
    return True


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return entry is None or isinstance(entry, (bool, int, float, str))
    if set(entry) == {"float"}:
        return entry["float"] in ("inf", "-inf", "nan")
    if set(entry) != {"shape", "dtype", "range"}:
        return False
    shape, spread = entry["shape"], entry["range"]
    return (
        isinstance(shape, list)
        and len(shape) <= 16
        and all(type(x) is int and 0 <= x <= ELEMENTS for x in shape)
        and math.prod(shape) <= ELEMENTS
        and isinstance(entry["dtype"], str)
        and entry["dtype"] in DTYPES
        and isinstance(spread, list)
        and len(spread) == 2
        and all(map(is_finite, spread))
        and _holds(DTYPES[entry["dtype"]], *spread)
    )


def _holds(dtype: torch.dtype, low: float, high: float) -> bool:
    """Whether these are the ends of a range of the dtype's values."""
    if dtype.is_floating_point or dtype.is_complex:
        return low <= high
    if dtype == torch.bool:
        return 0 <= low <= high <= 1
    known = torch.iinfo(dtype)
    return known.min <= low <= high <= min(known.max, 2**62)  # a drawn number ends one above
