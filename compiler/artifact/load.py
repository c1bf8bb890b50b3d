"""Loading an artifact: into a fresh model of the original class, or as the graph."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.program import identity, program_of
from ..emit.leaf_modules import LeafSpec, emit_graph_module
from ..emit.replay import replay, tensors_by_name
from ..errors import ArtifactError
from ..plan import Plan
from .graph_store import CONSTANTS, WEIGHTS, load_program
from .place import settled
from .save import read_manifest
from .tensor_store import load_tensors


def load(
    directory: str | pathlib.Path,
    model: nn.Module | None = None,
    *,
    device: str | torch.device | None = "cpu",
    graph: bool = False,
) -> nn.Module:
    """The compressed model of an artifact, in eval mode.

    A transformers class is made from the stored configuration; any other class is handed in as
    `model`, fresh and of the original shapes (it is not changed). Otherwise, where the module back
    end did not hold, or with `graph=True`, the graph is loaded. Nothing is unpickled and no class
    outside transformers' own namespace is imported. Raises ArtifactError or PlanError.
    """
    place = settled(directory)
    manifest = read_manifest(place)
    if graph or manifest["backend"] != "module":
        return load_graph(place, manifest, device)
    fresh = model if model is not None else _transformers_model(manifest["class"], place)
    if fresh is None:
        return load_graph(place, manifest, device)
    return _load_module(place, fresh, device)


def load_graph(
    place: pathlib.Path, manifest: dict[str, Any], device: str | torch.device | None
) -> nn.Module:
    """The graph back end's model, with its leaf modules."""
    exported = load_program(place, device)
    args, kwargs = exported.example_inputs or ((), {})
    program = program_of(exported.module(), exported, args, kwargs, "artifact")
    leaves = {path: LeafSpec.from_json(data) for path, data in manifest["leaves"].items()}
    return emit_graph_module(program, leaves).eval()


def _transformers_model(name: str, place: pathlib.Path) -> nn.Module | None:
    module, _, attribute = name.rpartition(".")
    if not module.startswith("transformers.") or not (place / "config.json").exists():
        return None
    try:
        cls = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ArtifactError(
            f"transformers cannot import {module} ({error}); install the version the model needs."
        ) from error
    config_class = getattr(cls, "config_class", None)
    if not isinstance(cls, type) or not issubclass(cls, nn.Module) or config_class is None:
        raise ArtifactError(
            f"transformers has no model class {name}; install the version it needs."
        )
    config = config_class.from_dict(json.loads((place / "config.json").read_text()))
    model = cls(config)
    if (place / "generation_config.json").exists() and hasattr(model, "generation_config"):
        generation: Any = type(model.generation_config)
        model.generation_config = generation.from_pretrained(place)
    return model


def _load_module(
    place: pathlib.Path, fresh: nn.Module, device: str | torch.device | None
) -> nn.Module:
    plan = Plan.from_json((place / "plan.json").read_text())
    small = replay(
        fresh,
        plan.slices(),
        plan.attributes,
        plan.constants,
        plan.shapes(),
        thinning=plan.thinning,
    )
    stored: dict[str, Tensor] = {}
    for name in (WEIGHTS, CONSTANTS, "rest.safetensors"):
        stored.update(load_tensors(place / name, device))
    own = {plan.thinning.original(name): t for name, t in tensors_by_name(small).items()}
    filled = {identity(tensor) for name, tensor in own.items() if name in stored}
    for name, tensor in own.items():
        value = stored.get(name)
        if value is None:
            if identity(tensor) not in filled:
                raise ArtifactError(
                    f"the artifact has no tensor '{name}', which {type(small).__name__} needs; "
                    "hand in a fresh model of the original class."
                )
            continue
        if list(value.shape) != list(tensor.shape):
            raise ArtifactError(
                f"tensor '{name}' has shape {list(value.shape)} in the artifact and "
                f"{list(tensor.shape)} in the model; hand in a fresh model of the original shapes."
            )
        with torch.no_grad():
            tensor.data = value.detach().clone()
        if isinstance(tensor, nn.Parameter) and isinstance(value, nn.Parameter):
            tensor.requires_grad_(value.requires_grad)
    return small.to(device).eval() if device is not None else small.eval()
