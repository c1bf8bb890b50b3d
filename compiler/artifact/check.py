"""What can be checked of an artifact: alone, and with the original model."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.batch import Arguments
from ..capture.capture import capture
from ..errors import ArtifactError, PlanError
from ..plan import Plan
from ..rewrite.dead import find_dead
from ..rewrite.depth import without_branches
from ..rewrite.rewrite import rewrite
from ..verify.check import TOLERANCE, Check
from ..verify.difference import difference, relative_error
from ..verify.judge import blindness
from ..verify.prove import proof_inputs, prove
from .example import stored_calls
from .file_checks import INT8, flat_outputs, int8_check, moved, onnx_check
from .files import CONSTANTS, MANIFEST, PLAN, WEIGHTS, checksum, parse_json, read_bytes
from .load import load, load_graph
from .manifest import files_of, read_manifest
from .place import settled
from .tensor_store import load_tensors

ONNX_FILES = ("model.onnx", "model.int8.onnx")  # what is read besides what `load` reads


def check_artifact(directory: pathlib.Path) -> list[Check]:
    """Checksums, the graph's and the module's agreement, the ONNX files; all without the original.

    Raises ArtifactError for a damaged artifact.
    """
    directory = settled(directory)
    manifest = read_manifest(directory)
    sums = _check_sums(directory, manifest)
    checks = [Check("checksums", 0.0, "sha256", sums)]
    graph = load_graph(files_of(directory, manifest), manifest, "cpu")
    calls = stored_calls(files_of(directory, manifest), manifest)
    sensitivity = moved(graph, calls)
    if manifest["backend"] == "module":
        if manifest["builds"]:
            checks.append(_module_check(graph, load(directory), calls, manifest, sensitivity))
        else:
            why = f"{manifest['class']} is not imported from an artifact; give --original"
            checks.append(Check("module == graph", None, "-", 0, skipped=why))
    onnx, int8 = (directory / name for name in ONNX_FILES)
    if onnx.name in manifest["beside"]:
        checks.append(onnx_check(graph, calls, onnx, sensitivity))
    if int8.name in manifest["beside"]:
        stated = _stated(directory, INT8)
        checks.append(int8_check(graph, calls, int8, sensitivity, stated))
    return checks


def _module_check(
    graph: nn.Module,
    module: nn.Module,
    calls: Sequence[Arguments],
    manifest: dict[str, Any],
    sensitivity: float,
) -> Check:
    chosen, worst, blind = manifest["selection"], 0.0, None
    for call in calls:
        found, expected = flat_outputs(module, call), flat_outputs(graph, call)
        gap = difference(found if chosen is None else [found[i] for i in chosen], expected)
        worst = max(worst, gap.error)
        blind = gap.blind if blind is None else blind & gap.blind
    halves = {torch.float16, torch.bfloat16}
    half = any(p.dtype in halves for p in graph.parameters())
    return Check(
        "module == graph",
        worst,
        str(next((p.dtype for p in graph.parameters()), torch.float32)).removeprefix("torch."),
        len(calls),
        2e-2 if half else TOLERANCE,
        sensitivity=sensitivity,
        unproven=blindness(sensitivity, blind or (), calls),
    )


def _stated(directory: pathlib.Path, name: str) -> float | None:
    """The error that the report states of a check; None where it has none."""
    try:
        report = parse_json(read_bytes(directory / "report.json"), directory / "report.json")
        found = next(c["error"] for c in report["checks"] if c["name"] == name)
    except (ArtifactError, StopIteration, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, (int, float)) else None


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
    inputs = proof_inputs(graph.program, seed=11)
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
    for name in ONNX_FILES:
        if name in manifest["beside"] and checksum(directory / name) != manifest["beside"][name]:
            raise ArtifactError(
                f"{directory / name} was altered: its checksum does not match {MANIFEST}."
            )
    return len(files.sums) + sum(name in manifest["beside"] for name in ONNX_FILES)
