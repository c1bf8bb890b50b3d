"""Results with the artifacts they were saved as, and ways to damage those."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunec import compiler
from prunec.compiler import Result, Target
from prunec.compiler.artifact.files import checksum

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


def compress(model: nn.Module, *args: Any, **options: Any) -> Result:
    target = options.pop("target", Target(width=0.5))
    return compiler.compile(model, args, target=target, measure=False, **options)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A result and the artifact it was saved as; made once, never written to."""

    result: Result
    place: pathlib.Path


def edit_manifest(place: pathlib.Path, **changes: Any) -> None:
    path = place / "prunec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fix_checksum(place: pathlib.Path, name: str) -> None:
    manifest = json.loads((place / "prunec.json").read_text())
    table = "beside" if ".onnx" in name else "checksums"
    edit_manifest(place, **{table: manifest[table] | {name: checksum(place / name)}})


def change_weights(place: pathlib.Path, name: str) -> None:
    """Rewrite one stored tensor, with its checksum made to fit."""
    from safetensors import safe_open

    path = place / "weights.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, metadata=metadata)
    fix_checksum(place, path.name)


def kept_in(place: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in place.iterdir()}
