"""Inputs like those a model was compiled with: the samples of its artifact, or drawn ones."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.utils._pytree as pytree

from ..capture.batch import Arguments
from ..emit.call_code import call_of
from ..emit.row_values import DTYPES
from ..errors import ArtifactError
from .files import GRAPH, Files
from .manifest import example_value, files_of, is_tensor, read_manifest
from .samples import SAMPLES, load_samples

SEED = 3


def stored_calls(files: Files, manifest: dict[str, Any]) -> list[Arguments]:
    """What compile compared on, the example first; where it was too large to keep, one call drawn
    like it. Raises ArtifactError for inputs that are none of the graph's."""
    data = files.json(GRAPH)
    in_spec = call_of(data.get("call") if isinstance(data, dict) else None).pytree_info.in_spec
    entries = manifest["example"]
    if len(entries) != in_spec.num_leaves:
        raise ArtifactError(
            f"prunec.json describes {len(entries)} inputs and the graph takes"
            f" {in_spec.num_leaves}: the artifact is damaged, write it again."
        )
    generator = torch.Generator().manual_seed(SEED)
    flats = [[_drawn(entry, generator) for entry in entries]]
    if SAMPLES in files:
        flats = load_samples(files.path(SAMPLES), flats[0])
    return [pytree.tree_unflatten(flat, in_spec) for flat in flats]


def example_call(directory: pathlib.Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments like the ones the model was captured with. Raises ArtifactError."""
    manifest = read_manifest(directory)
    return stored_calls(files_of(directory, manifest), manifest)[0]


def _drawn(entry: Any, generator: torch.Generator) -> Any:
    if not is_tensor(entry):
        return example_value(entry)
    dtype, (low, high) = DTYPES[entry["dtype"]], entry["range"]
    if dtype.is_floating_point:
        values = torch.rand(entry["shape"], generator=generator) * (high - low) + low
        return values.to(dtype)
    return torch.randint(int(low), int(high) + 1, entry["shape"], generator=generator).to(dtype)
