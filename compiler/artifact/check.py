"""What can be checked of an artifact: alone, and with the original model."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import resize_batch
from ..capture.capture import capture
from ..capture.examples import fresh_inputs
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
from .graph_store import load_program
from .load import load, load_graph
from .place import settled
from .save import read_manifest

INT8_LIMIT = 0.5  # of the outputs' root mean square: drawn inputs may leave the ranges of the data


def check_artifact(directory: pathlib.Path) -> list[Check]:
    """Checksums, the graph's and the module's agreement, the ONNX files; all without the original.

    Raises ArtifactError for a damaged artifact.
    """
    directory = settled(directory)
    manifest = read_manifest(directory)
    checks = [Check("checksums", 0.0, "sha256", len(manifest["checksums"]))]
    graph = load_graph(directory, manifest, "cpu")
    args, kwargs = example_call(directory)
    expected = _flat(graph, args, kwargs)
    if manifest["backend"] == "module":
        if manifest["class"].startswith("transformers."):
            found = _flat(load(directory), args, kwargs)
            chosen = manifest["selection"]
            found = found if chosen is None else [found[i] for i in chosen]
            error = relative_error(found, expected)
            checks.append(Check("module == graph", error, "float32", 1))
        else:
            why = f"{manifest['class']} is not imported from an artifact; give --original"
            checks.append(Check("module == graph", None, "-", 0, skipped=why))
    onnx = directory / "model.onnx"
    if onnx.exists():
        parity = prove_parity(graph, {"example": (args, kwargs)}, onnx, tolerance=1e-3)
        checks.append(Check("ONNX == graph", parity.max_rel_error, "onnxruntime", 1))
    int8 = directory / "model.int8.onnx"
    if int8.exists():
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
    plan = Plan.from_json((directory / "plan.json").read_text())
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
    if read_manifest(directory, check=False)["recovered"]:
        return Check("stored weights", None, "-", 0, skipped="trained since the cut")
    stored = load_program(directory, "cpu").state_dict
    shared = [name for name in cut if name in stored]
    if not shared:
        raise ArtifactError("the artifact's graph shares no tensor with the original model.")
    error = relative_error([stored[n] for n in shared], [cut[n] for n in shared])
    return Check("stored weights == cut weights", error, "as stored", 1)


def _flat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with torch.no_grad(), full_precision():
        return pytree.tree_leaves(module(*args, **kwargs))


def example_call(directory: pathlib.Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments like the ones the model was captured with, drawn from the manifest."""
    manifest = read_manifest(directory, check=False)
    spec = load_program(directory, "cpu").module_call_graph[0].signature
    assert spec is not None
    generator = torch.Generator().manual_seed(3)

    def draw(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        dtype = getattr(torch, entry["dtype"])
        low, high = entry["range"]
        if dtype.is_floating_point:
            values = torch.rand(entry["shape"], generator=generator) * (high - low) + low
            return values.to(dtype)
        return torch.randint(int(low), int(high) + 1, entry["shape"], generator=generator).to(dtype)

    return pytree.tree_unflatten([draw(entry) for entry in manifest["example"]], spec.in_spec)
