"""A rewritten candidate, timed beside the original."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from types import TracebackType
from typing import Any

import torch

from ...compiler.capture.batch import resize_batch
from ...compiler.emit.build import emit
from ...compiler.inference.graph import Graph
from ...compiler.measure.model_timing import compare_modules
from ...compiler.measure.timing import Comparison
from ...compiler.onnx_files.export import export_onnx
from ...compiler.rewrite.correspondence import inherited
from ...compiler.rewrite.rewrite import rewrite
from ...compiler.target import Target
from .allocation import Allocation
from .depth import Depth

SECONDS = 6.0
ATTEMPTS = 3  # at a steady timing: a busy machine is asked again


class Candidates:
    """Times candidates of one graph, in the target's runtime and batch; a context, since under
    onnxruntime the original's export is kept for as long. `unsteady`: timings whose A/A control
    stayed off."""

    def __init__(self, graph: Graph, target: Target, depth: Depth | None = None) -> None:
        self.graph, self.target, self.depth = graph, target, depth
        self.unsteady: list[float] = []
        self.known: dict[tuple[object, ...], Comparison] = {}
        self._stack = contextlib.ExitStack()
        self._original: pathlib.Path | None = None

    def __enter__(self) -> Candidates:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def time(self, allocation: Allocation) -> Comparison:
        """Original against the candidate with the first entries kept: time does not depend on
        which entries those are. A candidate is built and timed once."""
        if allocation.key not in self.known:
            self.known[allocation.key] = self._time(allocation)
        return self.known[allocation.key]

    def _time(self, allocation: Allocation) -> Comparison:
        graph, widths = self.graph, allocation.widths
        if self.depth is not None and allocation.dropped:
            graph = self.depth.without(self.graph, allocation.dropped)
            widths = inherited(self.graph, graph, widths)
        kept = {
            d.var: torch.arange(widths[d.name])
            for d in graph.prunable.values()
            if d.var is not None and widths.get(d.name, d.size) < d.size
        }
        model = graph.source
        if kept or graph is not graph.whole:  # branches have been dropped
            model = emit(graph, rewrite(graph, kept), kept, trainable=False)[0].model
        program = graph.program
        before, after = self._files(model)
        found = compare_modules(
            graph.source,
            model,
            program.args,
            program.kwargs,
            runtime=self.target.runtime,
            device=str(program.device()),
            batch=self.target.batch,
            onnx_before=before,
            onnx_after=after,
            max_seconds=SECONDS if kept else SECONDS / 3,
            attempts=ATTEMPTS,
        )
        if not found.steady:
            self.unsteady.append(found.control)
        return found

    def _files(self, model: Any) -> tuple[pathlib.Path | None, pathlib.Path | None]:
        if self.target.runtime != "onnxruntime":
            return None, None
        if self._original is None:
            place = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="prunec-"))
            self._original = self._export(self.graph.source, pathlib.Path(place) / "original.onnx")
        after = self._export(model, self._original.with_name("candidate.onnx"))
        return self._original, after

    def _export(self, model: Any, path: pathlib.Path) -> pathlib.Path:
        args, kwargs = self.graph.program.args, self.graph.program.kwargs
        if self.target.batch is not None:
            args, kwargs = resize_batch(args, kwargs, self.target.batch)
        export_onnx(model, args, kwargs, path, dynamic_batch=False)
        return path
