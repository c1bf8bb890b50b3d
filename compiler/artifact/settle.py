"""What an artifact is, by loading it: its class alone, its class given a fresh model, its graph."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..cause import cause
from ..emit.call_tree import as_stored
from ..errors import ArtifactError
from .files import MANIFEST
from .load import load

if TYPE_CHECKING:
    from ..compilation import Compilation

TOLERANCE = 1e-4  # of an output's largest value: the same weights in the same kernels


def settle(
    state: Compilation, place: pathlib.Path, manifest: dict[str, Any], notes: list[str]
) -> None:
    """Load what was written and compare it with the result on the example call, from the class
    down to the graph; `manifest` says what held and `notes` what did not.

    Raises ArtifactError when the graph does not hold either.
    """
    dense = state.dense
    assert dense is not None
    if manifest["backend"] == "module" and dense.module is not None:
        if manifest["builds"]:
            why = _differs(state, place, manifest, dense.module)
            manifest["builds"] = not why
            if why:
                notes.append(
                    f"the artifact needs model= to load as {type(state.graph.source).__name__}, "
                    f"and loads as the graph without: {why}"
                )
        if not manifest["builds"]:
            why = _differs(state, place, manifest, dense.module, state.graph.source)
            if why:
                manifest["backend"] = "graph"
                notes.append(f"the artifact loads as the graph, not as the class: {why}")
    why = _differs(state, place, manifest, dense.graph_module, graph=True)
    if why:
        raise ArtifactError(f"the graph cannot be stored: {why}.")


def _differs(
    state: Compilation,
    place: pathlib.Path,
    manifest: dict[str, Any],
    expected: nn.Module,
    model: nn.Module | None = None,
    graph: bool = False,
) -> str:
    """Why the artifact does not come back as the module; "" where it does."""
    (place / MANIFEST).write_text(json.dumps(manifest, allow_nan=False))
    program = state.graph.program
    try:
        loaded = load(place, model, device=program.device(), graph=graph)
        found = _outputs(loaded, program.args, program.kwargs)
    except Exception as error:  # whatever a class raises that is not what its file says
        return cause(error)
    wanted = _outputs(expected, program.args, program.kwargs)
    if graph:
        wanted = as_stored(wanted)
    return "" if _agree(found, wanted) else "it gives other results"


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module gives on a copy of the call, in eval mode, from one seed."""
    args, kwargs = pytree.tree_map(_copy, (args, kwargs))
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return module(*args, **kwargs)
    finally:
        for part, training in modes:
            part.training = training


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _agree(found: Any, wanted: Any) -> bool:
    ours, nesting = pytree.tree_flatten(found)
    theirs, expected = pytree.tree_flatten(wanted)
    return nesting == expected and all(map(_same, ours, theirs))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b or a != a)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    a, b = a.detach().double(), b.detach().double()
    finite = b[b.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)
