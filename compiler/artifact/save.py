"""The artifact: a directory of safetensors and JSON that holds the compressed model whole.

prunec.json               format version, class, back end, checksums of what is loaded
plan.json  report.json    what was removed; what was measured
graph.json  *.safetensors the graph as rows of plain data, its tensors by the model's names
rest.safetensors          tensors of the model that the graph does not use, cut buffers included
samples.safetensors       a few inputs on which the files were compared, for verify to do the same
config.json ...           a transformers model's configuration (original sizes), tokenizer
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..cause import cause
from ..emit.thin_modules import Thinning
from ..errors import ArtifactError
from .emission import Step, run_steps
from .files import CONFIG, MANIFEST, PLAN, READ, REST, SAMPLES, checksum
from .graph_store import store_graph
from .manifest import FORMAT, described
from .model_class import save_config, transformers_class
from .place import OutputPlace
from .rescue import moved, rescued, told
from .samples import sample_inputs, save_samples
from .settle import settle
from .tensor_store import save_tensors

if TYPE_CHECKING:
    from ..compilation import Compilation
    from ..report import Report


def save_artifact(
    state: Compilation,
    report: Report,
    directory: str | os.PathLike[str] | OutputPlace,
    steps: Sequence[Step] = (),
    *,
    try_load: bool = True,
    **companions: Any,
) -> pathlib.Path:
    """Write an artifact and return its directory; it appears whole or not at all.

    `directory`: also a place that the caller holds. `companions` are objects with `save_pretrained`
    (tokenizer, processor). `steps` add files (an .onnx) or complete the report; they and the
    companions come after the torch artifact, which stays where one fails: its error then says so.
    What cannot be written there is kept elsewhere, and the error says where. `try_load`: load it
    again before anything is called an artifact, and compare it with the result; where the class
    does not come back the artifact is of the graph, and a note of the report says so.

    Raises ArtifactError when there is no dense model, or the directory holds something that is no
    artifact, and what a step raises.
    """
    if state.dense is None:
        raise ArtifactError("there is no dense model to save; put SparseToDense into the pipeline.")
    if isinstance(directory, OutputPlace):
        _save(state, report, directory, steps, companions, try_load)
        return directory.given
    with OutputPlace(directory) as held:
        _save(state, report, held, steps, companions, try_load)
    return pathlib.Path(directory)


def _save(
    state: Compilation,
    report: Report,
    held: OutputPlace,
    steps: Sequence[Step],
    companions: dict[str, Any],
    try_load: bool,
) -> None:
    def write(place: pathlib.Path) -> None:
        _complete(report, place, _write(state, report, place, try_load))

    try:
        place = held.new()
        manifest = _write(state, report, place, try_load)
    except BaseException as error:
        raise told(error, rescued(state, held.target, write)) from error
    chosen = {what: one for what, one in companions.items() if one is not None}
    todo = [(f"the {what}", one.save_pretrained) for what, one in chosen.items()]
    failure = run_steps([*todo, *steps], place)
    if failure is not None:
        report.notes.append(f"{failure.what} failed: {cause(failure.error)}")
    try:
        _complete(report, place, manifest)
        held.commit()
    except BaseException as error:
        raise told(error, moved(held, write)) from error
    if failure is not None:
        raise told(failure.error, held.given, failure.what) from failure.error


def _complete(report: Report, place: pathlib.Path, manifest: dict[str, Any]) -> None:
    """The report as it is by now, and the manifest of what there is."""
    (place / MANIFEST).unlink(missing_ok=True)
    (place / "report.json").write_text(json.dumps(report.to_json(), indent=1))
    manifest["beside"] = {path.name: checksum(path) for path in sorted(place.glob("*.onnx*"))}
    files = (path for path in place.rglob("*") if path.is_file())
    manifest["files"] = sorted(path.relative_to(place).as_posix() for path in files)
    (place / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False))
    for path in place.rglob("*"):  # safetensors and temporary files are private by default
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write(
    state: Compilation, report: Report, place: pathlib.Path, try_load: bool
) -> dict[str, Any]:
    """Write what `load` reads, and give the manifest, which says what it was loaded as."""
    dense = state.dense
    assert dense is not None
    store_graph(dense.graph_module, place)
    rest = _rest(dense.module, _stored(dense.graph_module), state.plan.thinning)
    save_tensors(rest, place / REST)
    (place / PLAN).write_text(state.plan.to_json())
    save_config(state.graph.source, place)
    save_samples(sample_inputs(state.graph.program, state.samples), place)
    manifest = _manifest(state, place)
    if try_load:
        settle(state, place, manifest, report.notes)
    return manifest


def _manifest(state: Compilation, place: pathlib.Path) -> dict[str, Any]:
    program, cls = state.graph.program, type(state.graph.source)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return {
        "format": FORMAT,
        "class": name,
        "backend": state.plan.backend or "graph",
        "builds": (place / CONFIG).exists() and transformers_class(name) is cls,
        "recovered": "recovered" in state.facts,
        "selection": program.selection,
        "example": [described(x) for x in program.flat_inputs()],
        "versions": {"torch": torch.__version__},
        "checksums": {name: checksum(place / name) for name in READ if (place / name).exists()},
        "beside": {},
        "files": [],
    }


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that are stored with the graph, under all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _rest(
    module: nn.Module | None, stored: dict[str, Tensor], thinning: Thinning
) -> dict[str, Tensor]:
    """Tensors the module has and the graph has not: unused parameters, non-persistent buffers; by
    the original's names."""
    if module is None:
        return {}
    known = {id(t) for t in stored.values()}
    own = (*module.named_parameters(), *module.named_buffers())
    tensors = {thinning.original(name): t for name, t in own}
    return {
        name: t.detach().contiguous()
        for name, t in tensors.items()
        if id(t) not in known and name not in stored
    }


def weight_bytes(place: pathlib.Path) -> int:
    """The bytes of an artifact's weight files."""
    files = (path for path in place.glob("*.safetensors") if path.name != SAMPLES)
    return sum(path.stat().st_size for path in files)
