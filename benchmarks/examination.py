"""One model through everything: captured, half of every dimension cut, compared in every way."""

from __future__ import annotations

import collections
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architectures
import torch
import torch.utils._pytree as pytree
import vision_models
from default_recipe import examine_default
from torch import Tensor, nn

from prunec.compiler import capture
from prunec.compiler.compilation import Compilation
from prunec.compiler.emit.build import emit
from prunec.compiler.inference.graph import Graph
from prunec.compiler.inputs.example_inputs import example_inputs
from prunec.compiler.ir.program import Program
from prunec.compiler.onnx_files.export import export_onnx
from prunec.compiler.plan import Plan
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.verify.backends import capture_error, select_like
from prunec.compiler.verify.difference import relative_error
from prunec.compiler.verify.interpreter import ProgramInterpreter
from prunec.compiler.verify.oracles import (
    permutation,
    restricted_statistics,
    unsupported_statistics,
    zero_mask,
)
from prunec.compiler.verify.prove import verification_inputs
from prunec.compiler.verify.structure import check_structure

EXACT = 1e-4
LARGEST = 40_000_000  # parameters of a "tiny" model
TEXT_LENGTH = 40  # tokens: a scan over them is unrolled when it is captured


def enliven(model: nn.Module) -> None:
    """Weights of gain one and biases off zero: at their usual initial scale attention is uniform
    and branches are small, so that wrong models look right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not p.is_floating_point() or not p.numel():
                continue
            if p.dim() > 1:
                spread = p.std() * p[0].numel() ** 0.5
                if 0 < spread < 1:
                    p.div_(spread)
            else:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


def half_of_everything(graph: Graph, seed: int = 0) -> dict[str, list[int]]:
    """A random half of every prunable dimension: a stress test, not a policy."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, list[int]] = {}
    for d in graph.prunable.values():
        count = max(d.minimum, d.size // 2, 1)
        if count < d.size:
            kept[d.name] = sorted(torch.randperm(d.size, generator=generator)[:count].tolist())
    return kept


def independent(graph: Graph, plan: Plan, dense: Program) -> float:
    """The dense program against the user's model, run eagerly with everything outside the plan's
    slices zeroed; in float64 where float32 rounds too much."""
    error = _independent(graph, plan, dense, None)
    return error if error <= EXACT else min(error, _independent(graph, plan, dense, torch.float64))


def _independent(graph: Graph, plan: Plan, dense: Program, dtype: torch.dtype | None) -> float:
    model, program = graph.source, graph.program
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    masked = {n: t.detach().clone() for n, t in own.items() if n in plan.slices() or dtype}
    for name, axes in plan.slices().items():
        for axis, kept in axes.items() if name in own else ():
            gone = torch.ones(masked[name].shape[axis], dtype=torch.bool)
            gone[kept] = False
            masked[name].index_fill_(axis, gone.nonzero().reshape(-1), 0)

    def cast(x: Any) -> Any:
        x = x.clone()
        return x.to(dtype) if dtype and x.is_floating_point() else x

    args, kwargs = pytree.tree_map_only(Tensor, cast, (program.args, program.kwargs))
    masked = {n: cast(t) for n, t in masked.items()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = torch.func.functional_call(model, masked, args, kwargs)
            torch.manual_seed(0)
            found = ProgramInterpreter(dense, dtype=dtype)(dense.flat_inputs())
    except RuntimeError:
        if dtype is None:
            raise
        return float("inf")  # a model that names its dtype does not run in another
    return relative_error(found, select_like(program, expected))


def examine(model: nn.Module, args: Any, kwargs: Any, onnx: bool) -> dict[str, Any]:
    """One row of the table; what fails is said in `failures`."""
    row: dict[str, Any] = {"class": type(model).__name__, "failures": []}
    failures: list[str] = row["failures"]
    began = time.perf_counter()
    graph = capture(model, args, kwargs=kwargs)
    row["seconds_capture"] = round(time.perf_counter() - began, 2)
    row["captured"] = f"{graph.program.how}, {'dynamic' if graph.program.dynamic else 'static'}"
    row["nodes"] = len(graph.program.graph.nodes)
    row["dimensions"] = dict(collections.Counter(d.kind for d in graph.prunable.values()))
    row["blocked"] = dict(
        collections.Counter(
            d.blocked.text for d in graph.dimensions.values() if d.blocked is not None
        )
    )
    row["frozen ops"] = dict(
        collections.Counter(reason.text for reason in graph.inference.frozen.values())
    )
    failures += [f"rule: {text}" for text in graph.inference.failures.values()]
    if not graph.prunable:
        failures.append("nothing is prunable")
        return row
    plan = Plan(kept=half_of_everything(graph), graph=graph)
    kept = plan.planned()
    dense = rewrite(graph, kept)
    check_structure(graph, dense, kept)
    row["parameters"] = round(_count(dense.tensors) / _count(graph.program.tensors), 3)
    inputs = verification_inputs(Compilation(graph))
    _passed(capture_error(graph, inputs), failures)
    exact = {n: k for n, k in plan.kept.items() if graph.dimensions[n].exact}
    if exact:
        part = Plan(kept=exact, graph=graph)
        smaller = rewrite(graph, part.planned(), on_use=True)
        row["zero mask"] = _passed(zero_mask(graph, smaller, part.planned(), inputs), failures)
        row["masked eager"] = error = independent(graph, part, smaller)
        if error > EXACT:
            failures.append(f"masked eagerly: {error:.1e}")
    if unsupported_statistics(graph, kept):
        failures.append(f"no reference for {unsupported_statistics(graph, kept)[0].target}")
    else:
        check = restricted_statistics(graph, dense, kept, inputs)
        row["restricted"] = _passed(check, failures)
    row["permutation"] = _passed(permutation(graph, inputs[:1]), failures)
    result, _ = emit(graph, dense, kept)
    row["class kept"] = result.module is not None
    row["module back end"] = result.module_reason
    row["seconds"] = round(time.perf_counter() - began, 2)
    if onnx:
        call = graph.program.args, graph.program.kwargs
        try:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "model.onnx"
                row["onnx"] = export_onnx(result.model, *call, path).max_rel_error
        except Exception as error:
            row["onnx"] = " ".join(str(error).split())[:200]
    return row


def _count(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() for t in tensors.values() if isinstance(t, nn.Parameter))


def _passed(check: Any, failures: list[str]) -> float | None:
    if not check.passed:
        failures.append(f"{check.name}: {check.error:.1e} ({check.dtype})")
    return check.error


def one(name: str, onnx: bool, recipe: str = "half") -> dict[str, Any]:
    """The row of one architecture; an exception becomes its failure."""
    why: list[str] = []
    try:
        for model, args, kwargs in candidates(name, why):
            try:
                if recipe == "default":
                    return examine_default(model, args, kwargs)
                return examine(model, args, kwargs, onnx)
            except Exception as error:
                return {"class": type(model).__name__, "failures": [_said(error)]}
    except Exception as error:
        why.append(_said(error))
    return {"skipped": why[0]}


def candidates(name: str, why: list[str]) -> Iterator[tuple[nn.Module, Any, dict[str, Any]]]:
    """(model, args, kwargs) that run; `why` gathers what stood in the way of others."""
    if ":" in name:
        model, args = vision_models.build(name)
        if _small_enough(model, why):
            enliven(model)
            yield model, args, {}
        return
    for model in architectures.tiny_models(name):
        if not _small_enough(model, why):
            continue
        enliven(model)
        try:
            args, kwargs = example_inputs(model)
        except Exception as error:
            why.append(_said(error))
            continue
        yield model, args, kwargs


def _small_enough(model: nn.Module, why: list[str]) -> bool:
    count = sum(p.numel() for p in model.parameters())
    if count > LARGEST:
        why.append(f"{count / 1e6:.0f}M parameters")
    return count <= LARGEST


def _said(error: Exception) -> str:
    text = re.sub(
        r"(/[\w.+-]+)+/", "", " ".join(str(error).split())
    )  # folders are the machine's own
    return f"{type(error).__name__}: {text[:300]}"
