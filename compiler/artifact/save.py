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
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..capture.export import export
from ..emit.thin_modules import Thinning
from ..errors import ArtifactError
from .graph_store import store_program
from .tensor_store import save_tensors

if TYPE_CHECKING:
    from ..compilation import Compilation
    from ..report import Report

FORMAT = 1
MANIFEST = "prunec.json"
SWEEP = ("sweep.json", "sweep.png")  # of a sweep in the same directory; no part of the artifact
KEYS = ("class", "backend", "recovered", "leaves", "selection", "example", "checksums")


def save_artifact(
    state: Compilation,
    report: Report,
    directory: str | pathlib.Path,
    before_closing: Callable[[pathlib.Path], None] | None = None,
    **companions: Any,
) -> pathlib.Path:
    """Write an artifact and return its directory; it appears whole or not at all.

    `before_closing` may add files (an .onnx) and complete the report before that is written.
    `companions` are objects with `save_pretrained` (tokenizer, processor). Raises ArtifactError
    when there is no dense model, or the directory holds something that is no artifact.
    """
    if state.dense is None:
        raise ArtifactError("there is no dense model to save; put SparseToDense into the pipeline.")
    target = pathlib.Path(directory).resolve()
    with replaced_whole(target) as place:
        _write(state, place, companions)
        if before_closing is not None:
            before_closing(place)
        (place / "report.json").write_text(json.dumps(report.to_json(), indent=1))
        _write_manifest(state, place)
        for path in place.rglob("*"):  # safetensors and temporary files are private by default
            path.chmod(0o755 if path.is_dir() else 0o644)
    return pathlib.Path(directory)


@contextlib.contextmanager
def replaced_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory beside `target`, moved to its place when the block ends well.

    Only an empty directory, an earlier artifact or the files of a sweep are replaced; those of a
    sweep go on into the new one.
    """
    refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    place.chmod(0o755)
    try:
        yield place
        old = None
        if target.exists():
            for path in (target / name for name in SWEEP):
                if path.is_file():
                    shutil.copy2(path, place)
            old = place.with_name(place.name + "-old")
            target.rename(old)
        try:
            place.rename(target)
        except OSError:
            if old is not None:
                old.rename(target)
            raise
        if old is not None:
            shutil.rmtree(old)
    finally:
        if place.exists():
            shutil.rmtree(place)


def refuse_foreign(target: pathlib.Path) -> None:
    """Raise ArtifactError when something else than an artifact, what a sweep has written or an
    empty directory is there, or a file where a directory is needed."""
    refuse_file(target)
    if not target.exists() or (target / MANIFEST).is_file():
        return
    if any(path.name not in SWEEP for path in target.iterdir()):
        raise ArtifactError(f"{target} exists and is no prunec artifact; choose another path.")


def refuse_file(target: pathlib.Path) -> None:
    """Raise ArtifactError where no directory can be made: it, or what it lies in, is a file."""
    nearest = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ArtifactError(f"{nearest} exists and is no directory; choose another path.")


def _write(state: Compilation, place: pathlib.Path, companions: dict[str, Any]) -> None:
    dense, graph = state.dense, state.graph
    assert dense is not None
    exported, _ = export(dense.graph_module, *_example(state))
    store_program(exported, place)
    rest = _rest(dense.module, dense.program.tensors, state.plan.thinning)
    save_tensors(rest, place / "rest.safetensors")
    (place / "plan.json").write_text(state.plan.to_json())
    for companion in companions.values():
        if companion is not None:
            companion.save_pretrained(place)
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
    place = pathlib.Path(directory)
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
