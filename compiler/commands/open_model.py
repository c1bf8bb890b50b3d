"""MODEL as every command opens it."""

from __future__ import annotations

import pathlib

from torch import nn

from ..artifact.example import example_call
from ..artifact.load import load
from ..artifact.manifest import read_manifest
from ..errors import ArtifactError, PlanError
from ..sources.model import Source, resolve_model


def open_model(spec: str, inputs: list[str] | None, like: nn.Module | None = None) -> Source:
    """A model and its arguments; without `--input`, an artifact is run as it was captured.

    `like`: a model that an artifact is put into where it was made from one of that class and these
    shapes; otherwise what is no transformers class comes as the graph.
    """

    def opened(place: pathlib.Path) -> nn.Module:
        if like is not None and class_of(like) == read_manifest(place)["class"]:
            try:
                return load(place, like)
            except (ArtifactError, PlanError):  # another model of the same class
                pass
        return load(place)

    source = resolve_model(spec, input_spec=inputs, load_artifact=opened)
    if source.kind == "artifact" and not inputs:
        source.args, source.kwargs = example_call(pathlib.Path(spec))
    return source


def as_graph(source: Source) -> bool:
    """Whether it is an artifact that came as the graph and not as the class it was made from."""
    if source.kind != "artifact":
        return False
    return class_of(source.model) != read_manifest(source.name)["class"]


def class_of(model: nn.Module) -> str:
    """A model's class as manifests name it."""
    return f"{type(model).__module__}.{type(model).__qualname__}"
