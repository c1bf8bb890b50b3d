"""What can be checked of an artifact: alone, and with the original model."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import resize_batch
from ..capture.capture import capture
from ..capture.examples import copied_call, fresh_inputs
from ..emit.row_values import DTYPES
from ..errors import ArtifactError, PlanError
from ..onnx_files.parity import prove_parity
from ..onnx_files.quantize import int8_error
from ..plan import Plan
from ..rewrite.dead import find_dead
from ..rewrite.depth import without_branches
from ..rewrite.rewrite import rewrite
from ..verify.check import Check
from ..verify.difference import relative_error
from ..verify.interpreter import full_precision
from ..verify.prove import prove
from .files import CONSTANTS, MANIFEST, PLAN, WEIGHTS, checksum
from .load import load, load_graph
from .manifest import example_value, files_of, is_tensor, read_manifest
from .place import settled
from .tensor_store import load_tensors

BESIDE = ("model.onnx", "model.int8.onnx")  # what is read besides what `load` reads
INT8_LIMIT = 0.5  # of the outputs' root mean square: drawn inputs may leave the ranges of the data


def check_artifact(directory: pathlib.Path) -> list[Check]:
    """Checksums, the graph's and the module's agreement, the ONNX files; all without the original.

    Raises ArtifactError for a damaged artifact.
    """
    directory = settled(directory)
    manifest = read_manifest(directory)
    sums = _check_sums(directory, manifest)
    checks = [Check("checksums", 0.0, "sha256", sums)]
    graph = load_graph(files_of(directory, manifest), manifest, "cpu")
    args, kwargs = _example(graph, manifest)
    expected = _flat(graph, args, kwargs)
    if manifest["backend"] == "module":
        if manifest["builds"]:
            found = _flat(load(directory), args, kwargs)
            chosen = manifest["selection"]
            found = found if chosen is None else [found[i] for i in chosen]
            error = relative_error(found, expected)
            checks.append(Check("module == graph", error, "float32", 1))
        else:
            why = f"{manifest['class']} is not imported from an artifact; give --original"
            checks.append(Check("module == graph", None, "-", 0, skipped=why))
    onnx, int8 = (directory / name for name in BESIDE)
    if onnx.name in manifest["beside"]:
        parity = prove_parity(graph, {"example": (args, kwargs)}, onnx, tolerance=1e-3)
        checks.append(Check("ONNX == graph", parity.max_rel_error, "onnxruntime", 1))
    if int8.name in manifest["beside"]:
        error = int8_error(graph, [(args, kwargs)], int8)
        checks.append(Check("int8 == graph (RMS)", error, "onnxruntime", 1, limit=INT8_LIMIT))
    return checks


def prove_artifact(
    directory: pathlib.Path, original: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Check]:
    """Re-prove an artifact's plan on the original model: capture it, cut it, run the three checks;
    and compare the stored weights with the cut ones unless they were trained since.

    Raises PlanError when the original does not fit the plan, VerificationError when a check fails.
    """
    manifest = read_manifest(directory)
    plan = Plan.from_json(files_of(directory, manifest).text(PLAN))
    graph = capture(
        original, args, kwargs=kwargs, outputs=plan.outputs, untie_tables=plan.untie_tables
    )
    graph = without_branches(graph, plan.dropped)
    missing = [name for name in (*plan.kept, *plan.dead) if name not in graph.prunable]
    if missing:
        raise PlanError(
            f"the original has no prunable dimension '{missing[0]}'; give the model and inputs the "
            "artifact was made with."
        )
    plan.graph = graph
    planned = plan.planned()
    dead = find_dead(graph, planned)
    program = graph.program
    fresh = fresh_inputs(program.args, program.kwargs, seed=11)
    inputs = [program.flat_inputs(*fresh)]
    if program.batched:
        inputs.append(program.flat_inputs(*resize_batch(*fresh, 2)))
    dense = rewrite(graph, plan.combined(), dead.folds)
    checks = prove(graph, dense, planned, dead, inputs)
    return [*checks, _stored_weights(directory, dense.tensors)]


def _stored_weights(directory: pathlib.Path, cut: dict[str, Tensor]) -> Check:
    manifest = read_manifest(directory)
    if manifest["recovered"]:
        return Check("stored weights", None, "-", 0, skipped="trained since the cut")
    files = files_of(directory, manifest)
    stored = {n: t for f in (WEIGHTS, CONSTANTS) for n, t in load_tensors(files.path(f)).items()}
    shared = [name for name in cut if name in stored]
    if not shared:
        raise ArtifactError("the artifact's graph shares no tensor with the original model.")
    error = relative_error([stored[n] for n in shared], [cut[n] for n in shared])
    return Check("stored weights == cut weights", error, "as stored", 1)


def _check_sums(directory: pathlib.Path, manifest: dict[str, Any]) -> int:
    """How many files have the checksums that the manifest lists. Raises ArtifactError."""
    files = files_of(directory, manifest)
    for name in files.sums:
        files.path(name)
    for name in BESIDE:
        if name in manifest["beside"] and checksum(directory / name) != manifest["beside"][name]:
            raise ArtifactError(
                f"{directory / name} was altered: its checksum does not match {MANIFEST}."
            )
    return len(files.sums) + sum(name in manifest["beside"] for name in BESIDE)


def _flat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with torch.no_grad(), full_precision():
        args, kwargs = copied_call(args, kwargs)
        return pytree.tree_leaves(module(*args, **kwargs))


def example_call(directory: pathlib.Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments like the ones the model was captured with, drawn from the manifest."""
    manifest = read_manifest(directory)
    return _example(load_graph(files_of(directory, manifest), manifest, "cpu"), manifest)


def _example(graph: Any, manifest: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)

    def draw(entry: Any) -> Any:
        if not is_tensor(entry):
            return example_value(entry)
        dtype = DTYPES[entry["dtype"]]
        low, high = entry["range"]
        if dtype.is_floating_point:
            values = torch.rand(entry["shape"], generator=generator) * (high - low) + low
            return values.to(dtype)
        return torch.randint(int(low), int(high) + 1, entry["shape"], generator=generator).to(dtype)

    return pytree.tree_unflatten([draw(entry) for entry in manifest["example"]], graph._in_spec)
