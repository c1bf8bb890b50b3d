"""A compressed model's graph as rows of plain data and safetensors, and back: no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..emit.graph_module import EmittedGraph
from ..emit.stored_graph import fill, graph_from_data, graph_to_data
from ..errors import ArtifactError
from .files import CONSTANTS, GRAPH, WEIGHTS, Files
from .size_check import check_sizes
from .tensor_store import available, load_tensors, save_tensors, tensor_shapes


def store_graph(module: fx.GraphModule, directory: Path) -> None:
    """Write graph.json, weights.safetensors (parameters, persistent buffers) and
    constants.safetensors (other buffers) of an emitted graph into an existing directory.

    Names of nodes, stack traces and example inputs are left out: they hold paths and data.

    Raises:
        ArtifactError: the graph calls what is no operator of torch, takes classes as arguments, or
            holds tensors that are not plain.
    """
    data = graph_to_data(module)
    lasting, passing = _tensors(module)
    save_tensors(lasting, directory / WEIGHTS)
    save_tensors(passing, directory / CONSTANTS)
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    (directory / GRAPH).write_text(text, encoding="utf-8")


def load_graph_module(
    files: Files,
    example: list[Any],
    device: torch.device | str | None = None,
    *,
    namespaces: tuple[str, ...] = (),
) -> EmittedGraph:
    """The graph module of an artifact, with all of it on `device`.

    None keeps the devices it was stored with where this machine has them, and takes the CPU
    elsewhere. `example`: the flat inputs as the manifest describes them, on whose shapes the graph
    is run without data first. `namespaces`: operator libraries beyond ATen that it may call.

    Raises:
        ArtifactError: a file is missing or damaged, or holds what a captured model does not.
    """

    def place(name: str) -> torch.device:
        return available(device or name)

    data = files.json(GRAPH)
    shapes = {name: tensor_shapes(files.path(name)) for name in (WEIGHTS, CONSTANTS)}
    planned: dict[str, Tensor] = {}
    for tensors in shapes.values():
        planned |= tensors
    if len(planned) < sum(map(len, shapes.values())):
        raise ArtifactError(f"{files.place} holds two tensors of one name: it is damaged.")
    module = graph_from_data(data, planned, shapes[WEIGHTS], place, namespaces)
    check_sizes(module, example)
    fill(module, {**load_tensors(files.path(WEIGHTS), device)})
    fill(module, {**load_tensors(files.path(CONSTANTS), device)})
    return module


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A module's tensors under all their names: those of its state dict, and the others."""
    lasting: dict[str, Tensor] = {}
    passing: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        own = {**part._parameters, **part._buffers}
        for name, tensor in own.items():
            table = passing if name in part._non_persistent_buffers_set else lasting
            if tensor is not None:
                table[f"{path}.{name}" if path else name] = tensor
    return lasting, passing
