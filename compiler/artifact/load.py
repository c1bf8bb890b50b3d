"""Loading an artifact: into a fresh model of the original class, or as the graph."""

from __future__ import annotations

import pathlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..capture.program import identity
from ..emit.replay import replay, tensors_by_name
from ..errors import ArtifactError
from ..option_types import checked
from ..plan import Plan
from .example import stored_calls
from .files import CONFIG, CONSTANTS, GENERATION, PLAN, REST, WEIGHTS, Files
from .graph_store import load_graph_module
from .manifest import files_of, read_manifest
from .model_class import build_model
from .place import settled
from .tensor_store import load_tensors, tensor_shapes
from .trial_run import run_once

GROWTH = 4096  # elements of the original's tensors for each one that is stored
FLOOR = 2**28


@checked()
def load(
    directory: str | pathlib.Path,
    model: nn.Module | None = None,
    *,
    device: str | torch.device | None = "cpu",
    graph: bool = False,
    namespaces: tuple[str, ...] = (),
    try_run: bool = True,
) -> nn.Module:
    """The compressed model of an artifact, in eval mode.

    A transformers class is made from the stored configuration; any other class is handed in as
    `model`, fresh and of the original shapes (it is not changed). Otherwise, where the module back
    end did not hold, or with `graph=True`, the graph is loaded. `namespaces`: operator libraries
    beyond torch's own that the graph may call, whose extension is imported. `try_run`: run it once
    on an input that was kept, or drawn like those, since files may be read well and not fit.

    An artifact is data: nothing of it is executed or imported, nothing outside its directory is
    opened. Raises ArtifactError or PlanError.
    """
    place = settled(directory)
    manifest = read_manifest(place)
    files = files_of(place, manifest)
    if not graph and manifest["backend"] == "module" and (model is not None or manifest["builds"]):
        loaded = _load_module(files, manifest, model, device)
    else:
        loaded = load_graph(files, manifest, device, namespaces)
    if try_run:
        run_once(loaded, stored_calls(files, manifest)[0])
    return loaded


def load_graph(
    files: Files,
    manifest: dict[str, Any],
    device: str | torch.device | None,
    namespaces: tuple[str, ...] = (),
) -> nn.Module:
    """The graph back end's model, with its leaf modules."""
    module = load_graph_module(files, manifest["example"], device, namespaces=namespaces)
    return module.eval()


def _load_module(
    files: Files,
    manifest: dict[str, Any],
    model: nn.Module | None,
    device: str | torch.device | None,
) -> nn.Module:
    plan = Plan.from_json(files.text(PLAN))
    if plan.backend != manifest["backend"]:
        raise ArtifactError(
            f"the manifest of {files.place} says that the class was kept, and its plan that it was "
            "not: the artifact is damaged."
        )
    shapes: dict[str, Tensor] = {}
    for name in (WEIGHTS, CONSTANTS, REST):
        shapes.update(tensor_shapes(files.path(name)))
    fresh = model if model is not None else _built(files, manifest["class"], plan, shapes, "meta")
    small = _replayed(fresh, plan)
    own = _stored_names(small, plan)
    _check_shapes(small, own, shapes)
    if model is None and any(_plain_meta(part) for part in small.modules()):
        # it keeps tensors that are neither parameters nor buffers, made where it was made
        _check_size(fresh, shapes)
        small = _replayed(_built(files, manifest["class"], plan, shapes, "cpu"), plan)
        own = _stored_names(small, plan)
    stored: dict[str, Tensor] = {}
    for name in (WEIGHTS, CONSTANTS, REST):
        stored.update(load_tensors(files.path(name), device))
    _fill(small, own, stored)
    return small.to(device).eval() if device is not None else small.eval()


def _built(
    files: Files, name: str, plan: Plan, stored: dict[str, Tensor], device: str
) -> nn.Module:
    generation = files.json(GENERATION) if GENERATION in files else None
    count = len(stored) + len(plan.shapes()) + sum(len(d.tensors) for d in plan.dropped)
    return build_model(name, files.json(CONFIG), generation, count, device)


def _replayed(fresh: nn.Module, plan: Plan) -> nn.Module:
    return replay(
        fresh,
        plan.slices(),
        plan.attributes,
        plan.constants,
        plan.shapes(),
        thinning=plan.thinning,
    )


def _stored_names(small: nn.Module, plan: Plan) -> dict[str, Tensor]:
    return {plan.thinning.original(name): t for name, t in tensors_by_name(small).items()}


def _check_shapes(small: nn.Module, own: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Raise ArtifactError unless each tensor of the model is stored, in its shape."""
    filled = {identity(tensor) for name, tensor in own.items() if name in stored}
    for name, tensor in own.items():
        value = stored.get(name)
        if value is None:
            if identity(tensor) not in filled:
                raise ArtifactError(
                    f"the artifact has no tensor '{name}', which {type(small).__name__} needs; "
                    "hand in a fresh model of the original class."
                )
        elif list(value.shape) != list(tensor.shape):
            raise ArtifactError(
                f"tensor '{name}' has shape {list(value.shape)} in the artifact and "
                f"{list(tensor.shape)} in the model; hand in a fresh model of the original shapes."
            )


def _check_size(fresh: nn.Module, stored: dict[str, Tensor]) -> None:
    """Raise ArtifactError for a model too large to be the one that was cut to these tensors."""
    size = sum(t.numel() for t in tensors_by_name(fresh).values())
    least = sum(t.numel() for t in stored.values())
    if size > FLOOR + GROWTH * least:
        raise ArtifactError(
            f"config.json describes a model of {size:,} elements, of which {least:,} are stored: "
            "the artifact is damaged or forged."
        )


def _fill(small: nn.Module, own: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Give the model's tensors the stored values; ties stay."""
    made: dict[int, Tensor] = {}
    for name, tensor in own.items():
        value = stored.get(name)
        if value is None or id(tensor) in made:
            continue
        if tensor.is_meta:
            made[id(tensor)] = _like(tensor, value.detach().clone(), value.requires_grad)
            continue
        with torch.no_grad():  # the same object: others may hold it
            tensor.data = value.detach().clone()
        if isinstance(tensor, nn.Parameter) and isinstance(value, nn.Parameter):
            tensor.requires_grad_(value.requires_grad)
    for part in small.modules():
        for table in cast(list[dict[str, Any]], [part._parameters, part._buffers]):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) in made:
                    table[name] = made[id(tensor)]


def _like(old: Tensor, data: Tensor, requires_grad: bool) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return data
    return nn.Parameter(data, requires_grad=requires_grad)


def _plain_meta(part: nn.Module) -> bool:
    held = (value for value in vars(part).values() if isinstance(value, Tensor))
    return any(value.device.type == "meta" for value in held)
