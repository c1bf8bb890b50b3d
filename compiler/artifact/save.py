"""The artifact: a directory of safetensors and JSON that holds the compressed model whole.

prunec.json               format version, class, back end, checksums of the other files
plan.json  report.json    what was removed; what was measured
graph.json  *.safetensors the graph in torch.export's schema, its tensors by the model's names
rest.safetensors          tensors of the model that the graph does not use, cut buffers included
config.json ...           a transformers model's configuration (original sizes), tokenizer
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..capture.export import export
from ..cause import cause
from ..emit.thin_modules import Thinning
from ..errors import ArtifactError
from .emission import Step, run_steps
from .graph_store import store_program
from .place import MANIFEST, OutputPlace, settled
from .rescue import moved, rescued, told
from .tensor_store import save_tensors

if TYPE_CHECKING:
    from ..compilation import Compilation
    from ..report import Report

FORMAT = 1
KEYS = ("class", "backend", "recovered", "leaves", "selection", "example", "checksums")


def save_artifact(
    state: Compilation,
    report: Report,
    directory: str | os.PathLike[str] | OutputPlace,
    steps: Sequence[Step] = (),
    **companions: Any,
) -> pathlib.Path:
    """Write an artifact and return its directory; it appears whole or not at all.

    `directory`: also a place that the caller holds. `companions` are objects with `save_pretrained`
    (tokenizer, processor). `steps` add files (an .onnx) or complete the report; they and the
    companions come after the torch artifact, which stays where one fails: its error then says so.
    What cannot be written there is kept elsewhere, and the error says where.

    Raises ArtifactError when there is no dense model, or the directory holds something that is no
    artifact, and what a step raises.
    """
    if state.dense is None:
        raise ArtifactError("there is no dense model to save; put SparseToDense into the pipeline.")
    if isinstance(directory, OutputPlace):
        _save(state, report, directory, steps, companions)
        return directory.given
    with OutputPlace(directory) as held:
        _save(state, report, held, steps, companions)
    return pathlib.Path(directory)


def _save(
    state: Compilation,
    report: Report,
    held: OutputPlace,
    steps: Sequence[Step],
    companions: dict[str, Any],
) -> None:
    def write(place: pathlib.Path) -> None:
        _write(state, place)
        _complete(state, report, place)

    try:
        place = held.new()
        _write(state, place)
    except BaseException as error:
        raise told(error, rescued(state, held.target, write)) from error
    chosen = {what: one for what, one in companions.items() if one is not None}
    todo = [(f"the {what}", one.save_pretrained) for what, one in chosen.items()]
    failure = run_steps([*todo, *steps], place)
    if failure is not None:
        report.notes.append(f"{failure.what} failed: {cause(failure.error)}")
    try:
        _complete(state, report, place)
        held.commit()
    except BaseException as error:
        raise told(error, moved(held, write)) from error
    if failure is not None:
        raise told(failure.error, held.given, failure.what) from failure.error


def _complete(state: Compilation, report: Report, place: pathlib.Path) -> None:
    """The report as it is by now, and the manifest of what there is."""
    (place / MANIFEST).unlink(missing_ok=True)
    (place / "report.json").write_text(json.dumps(report.to_json(), indent=1))
    _write_manifest(state, place)
    for path in place.rglob("*"):  # safetensors and temporary files are private by default
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write(state: Compilation, place: pathlib.Path) -> None:
    dense, graph = state.dense, state.graph
    assert dense is not None
    exported, _ = export(dense.graph_module, *_example(state))
    store_program(exported, place)
    rest = _rest(dense.module, dense.program.tensors, state.plan.thinning)
    save_tensors(rest, place / "rest.safetensors")
    (place / "plan.json").write_text(state.plan.to_json())
    _save_config(graph.source, place)


def _write_manifest(state: Compilation, place: pathlib.Path) -> None:
    dense, graph = state.dense, state.graph
    assert dense is not None
    program = graph.program
    cls = type(graph.source)
    manifest = {
        "format": FORMAT,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "backend": state.plan.backend,
        "recovered": "recovered" in state.facts,
        "aliases": {name: list(others) for name, others in program.aliases.items()},
        "leaves": {path: spec.to_json() for path, spec in dense.leaves.items()},
        "selection": program.selection,
        "example": [_described(x) for x in program.flat_inputs()],
        "versions": {"torch": torch.__version__},
        "files": sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()),
        "checksums": {
            path.relative_to(place).as_posix(): checksum(path)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        },
    }
    (place / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _example(state: Compilation) -> tuple[tuple[Any, ...], dict[str, Any]]:
    program = state.graph.program
    return program.args, program.kwargs


def _described(value: Any) -> Any:
    """Shape, dtype and the range of an example input: enough to draw inputs like it."""
    if isinstance(value, Tensor):
        spread = [float(value.min()), float(value.max())] if value.numel() else [0.0, 0.0]
        dtype = str(value.dtype).removeprefix("torch.")
        return {"shape": list(value.shape), "dtype": dtype, "range": spread}
    return value if isinstance(value, (bool, int, float, str)) else None


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
    return sum(path.stat().st_size for path in place.glob("*.safetensors"))


def _save_config(model: nn.Module, place: pathlib.Path) -> None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(place)
    generation: Any = getattr(model, "generation_config", None)
    if hasattr(generation, "save_pretrained"):
        with contextlib.suppress(ValueError):  # an invalid one never was loadable
            generation.save_pretrained(place)


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory: str | pathlib.Path, check: bool = True) -> dict[str, Any]:
    """The manifest, after its format and (`check`) every file's checksum were verified.

    Raises ArtifactError naming the file that is missing or altered.
    """
    place = settled(directory)
    try:
        manifest = json.loads((place / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{place} is no prunec artifact: it has no {MANIFEST}.") from error
    except ValueError as error:
        raise ArtifactError(f"{place / MANIFEST} is not JSON: the artifact is damaged.") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{place / MANIFEST} holds no manifest: the artifact is damaged.")
    if manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{place} has artifact format {manifest.get('format')}; this prunec reads {FORMAT}."
        )
    absent = [key for key in KEYS if key not in manifest]
    if absent:
        raise ArtifactError(f"{place / MANIFEST} has no '{absent[0]}': the artifact is damaged.")
    for name, expected in manifest["checksums"].items() if check else ():
        path = place / name
        if not path.is_file():
            raise ArtifactError(f"{place} is incomplete: {name} is missing.")
        if checksum(path) != expected:
            raise ArtifactError(f"{path} was altered: its checksum does not match {MANIFEST}.")
    return manifest
