"""MODEL as every command opens it."""

from __future__ import annotations

import pathlib

from ..artifact.check import example_call
from ..artifact.load import load
from ..sources.model import Source, resolve_model


def open_model(spec: str, inputs: list[str] | None) -> Source:
    """A model and its arguments; without `--input`, an artifact is run as it was captured."""
    source = resolve_model(spec, input_spec=inputs, load_artifact=load)
    if source.kind == "artifact" and not inputs:
        source.args, source.kwargs = example_call(pathlib.Path(spec))
    return source
