"""What a run returns: the model, the plan, the report; verify, export and save."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from .artifact.emission import Step
from .artifact.file_checks import int8_check, moved, onnx_check
from .artifact.place import OutputPlace
from .artifact.samples import sample_calls
from .artifact.save import save_artifact, weight_bytes
from .capture.batch import batch_size, resize_batch
from .capture.batches import forward_arguments
from .compilation import Compilation
from .errors import ArtifactError, ExportError, PlanError
from .inference.graph import Graph
from .inference.text import program_text
from .measure.cost import Cost, cost
from .measure.model_timing import compare_modules
from .measure.timing import Comparison
from .onnx_files.export import OnnxReport, export_onnx
from .onnx_files.quantize import QuantizeReport, quantize_onnx
from .option_types import checked, shown
from .plan import Plan
from .report import DimensionReport, PassReport, Report
from .rewrite.rewrite import rewrite
from .rewrite.slicing import cut_tensor
from .user_code import user_batches
from .verify.backends import check_backends
from .verify.check import NOT_PROVEN, Check, headline, require_proven
from .verify.prove import prove, verification_inputs

THROUGHPUT_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Verification:
    """Errors re-measured: `masked_error` is the worst relative |dense - masked|, `module_error`
    that between the module and the graph (None: no module)."""

    masked_error: float | None
    module_error: float | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; `proven` says whether each could have."""
        return all(check.passed for check in self.checks)

    @property
    def proven(self) -> bool:
        """Whether no check failed, and none compared nothing."""
        return self.passed and not self.headline

    @property
    def headline(self) -> str:
        """Which checks prove nothing, and why; '' where all do."""
        return headline(self.checks)


class Result:
    """The outcome of a pipeline. `model` is type(original) where the module back end holds."""

    def __init__(self, state: Compilation, passes: Sequence[PassReport]) -> None:
        self._state = state
        self.plan: Plan = state.plan
        self.model: nn.Module = state.model
        self.report = _report(state, list(passes))

    @property
    def graph_module(self) -> nn.Module | None:
        """The graph back end's model, sharing `model`'s parameters; None before SparseToDense."""
        return self._state.dense.graph_module if self._state.dense is not None else None

    @property
    def state(self) -> Compilation:
        """The compilation it is of, for a further round."""
        return self._state

    @property
    def source(self) -> nn.Module:
        """The original model."""
        return self._state.graph.source

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example call the model was captured with: args and kwargs."""
        return self._state.graph.program.example

    def _rows(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example with the rows it was captured with: an export of one row would fix that."""
        program = self._state.graph.program
        return program.args, program.kwargs

    def text(self) -> str:
        """What the passes made: the dense program, its nodes and sizes, or before the rewrite the
        graph with what the plan keeps of each dimension."""
        if self._state.dense is not None:
            return program_text(self._state.dense.program)
        return self._state.graph.text(self.plan.kept)

    @checked()
    def verify(self, seed: int = 101, strict: bool = False) -> Verification:
        """Prove the result once more, on new random inputs.

        Dense against masked (the plan restricted to exact dimensions), restricted statistics,
        permutation, module against graph. The first three use the original weights, so they hold
        however the result was trained since. Raises VerificationError when one fails and, with
        `strict`, when one proves nothing.
        """
        state = self._state
        graph = state.graph
        if state.dense is None:
            raise PlanError("nothing to verify: the pipeline has no SparseToDense.")
        planned = state.plan.planned()
        program = rewrite(graph, state.plan.combined(), state.dead.folds, on_use=True)
        checks = prove(graph, program, planned, state.dead, verification_inputs(state, seed))
        check_backends(state)
        agreements = [c for c in state.checks if c.name.endswith("== program")]
        if strict:
            require_proven([*checks, *agreements])
        errors = {c.name: c.error for c in (*checks, *agreements)}
        return Verification(
            errors.get("zero mask"), errors.get("module == program"), (*checks, *agreements)
        )

    @checked()
    def measure(
        self, runtime: str = "torch", batch: int | None = None, **options: Any
    ) -> Comparison:
        """Time original against result, interleaved; the comparison also goes to the report."""
        args, kwargs = self.example()
        comparison = compare_modules(
            self.source,
            self.model,
            args,
            kwargs,
            runtime=runtime,
            device=str(self._state.graph.program.device()),
            batch=batch,
            **options,
        )
        self.report.latency.append(comparison)
        return comparison

    @checked()
    def measure_all(
        self, runtimes: Sequence[str] = ("torch",), onnx: pathlib.Path | None = None, **options: Any
    ) -> None:
        """Batch 1 and a throughput batch, in each runtime; only the example's own batch where the
        model fixed it. `onnx`: the result's exported file; the original is exported beside it for
        the time of the measurement."""
        for runtime in runtimes:
            files: dict[str, Any] = {}
            fixed = False
            with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
                if runtime == "onnxruntime":
                    pair = [pathlib.Path(scratch) / "original.onnx", onnx]
                    found = [export_onnx(self.source, *self._rows(), pair[0]), self.report.onnx]
                    if pair[1] is None:
                        pair[1] = pathlib.Path(scratch) / "result.onnx"
                        found[1] = self._export(pair[1])
                    fixed = not all(file is None or file.dynamic_batch for file in found)
                    files = {"onnx_before": pair[0], "onnx_after": pair[1]}
                for batch in (None,) if fixed else self._batches():
                    self.measure(runtime, batch, **files, **options)

    def _batches(self) -> list[int | None]:
        own = batch_size(*self.example())
        batched = self._state.graph.program.batched
        wanted = [1, max(THROUGHPUT_BATCH, own or 1)] if batched and own else []
        call = self._state.graph.program.call
        found: list[int | None] = [
            size
            for size in wanted
            if call is None or call.admits(pytree.tree_leaves(resize_batch(*self.example(), size)))
        ]
        return found or [None]

    @checked()
    def export_onnx(self, path: str | pathlib.Path, **options: Any) -> OnnxReport:
        """Export to ONNX with a dynamic batch, check the file and compare it with the model in
        onnxruntime. Falls back to the graph module where the module does not export. Raises
        ExportError."""
        self.report.onnx = self._export(path, **options)
        return self.report.onnx

    def _export(self, path: str | pathlib.Path, **options: Any) -> OnnxReport:
        args, kwargs = self._rows()
        try:
            return export_onnx(self.model, args, kwargs, path, **options)
        except ExportError:
            if self.graph_module is None or self.graph_module is self.model:
                raise
            return export_onnx(self.graph_module, args, kwargs, path, **options)

    @checked()
    def quantize_onnx(
        self,
        path: str | pathlib.Path,
        mode: str = "dynamic",
        *,
        calibration: Iterable[Any] | None = None,
        measure: Sequence[int | None] = (),
    ) -> QuantizeReport:
        """Export to ONNX with int8 weights, by onnxruntime's quantiser; sizes, errors and times go
        to the report.

        `mode`: "dynamic" suits transformers, "static" convolutions. `calibration`: batches, by
        default those of the compile, else the example. `measure`: batch sizes (None: the example's)
        at which the original in float is timed against the int8 file. Raises ExportError.
        """
        program = self._state.graph.program
        if calibration is not None:
            calls = [forward_arguments(b) for b in user_batches("calibration", calibration)]
        else:
            flat = self._state.samples
            calls = [pytree.tree_unflatten(list(f), program.in_spec) for f in flat]
        if not calls:
            calls = [self.example()]
            found = "ranges and parity are" if mode == "static" else "parity is"
            self.report.notes.append(f"int8: {found} of the example inputs alone, without data")
        with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
            exported = pathlib.Path(scratch) / "float.onnx"
            fixed = not self._export(exported).dynamic_batch
            report = quantize_onnx(self.model, exported, path, calls, mode=mode)
            if measure:
                before = pathlib.Path(scratch) / "original.onnx"
                fixed |= not export_onnx(self.source, *self._rows(), before).dynamic_batch
                for batch in (None,) if fixed else measure:
                    files: dict[str, Any] = {
                        "onnx_before": before,
                        "onnx_after": pathlib.Path(path),
                    }
                    self.measure("onnxruntime", batch, **files)
                    timed = dataclasses.replace(self.report.latency[-1], runtime="onnxruntime int8")
                    self.report.latency[-1] = timed
        self.report.int8 = report
        return report

    @checked()
    def save(
        self,
        directory: str | pathlib.Path | OutputPlace,
        *,
        onnx: bool = False,
        int8: str | None = None,
        measure: Sequence[str] = (),
        try_load: bool = True,
        **companions: Any,
    ) -> pathlib.Path:
        """Write the artifact: safetensors and JSON, nothing pickled; with `onnx`, model.onnx too,
        and with `int8` ("dynamic" or "static") model.int8.onnx.

        `measure`: runtimes to time before the report is written. `companions`: a tokenizer or
        processor to save along. `try_load`: load it again and compare it before it is put in place;
        where the class does not come back, it is of the graph and the report says so. The directory
        appears whole or not at all; where ONNX, int8, a companion or the timing fails, without
        that, and the error (its `kept`) says so. What cannot be written there is kept elsewhere,
        and the error says where. Raises ArtifactError, ExportError.
        """
        for name, companion in companions.items():
            if companion is not None and not hasattr(companion, "save_pretrained"):
                raise ArtifactError(
                    f"{name} is {shown(companion)}, which has no save_pretrained: pass a tokenizer "
                    "or processor of transformers, or leave it out."
                )
        steps: list[Step] = [("the sizes on disk", self._sizes_on_disk)]
        if onnx:
            steps.append(("model.onnx", self._onnx_file))
        if int8 is not None:
            steps.append(("model.int8.onnx", lambda place: self._int8_file(place, int8, measure)))
        if measure:
            steps.append(
                (
                    "the timing",
                    lambda place: self.measure_all(measure, place / "model.onnx" if onnx else None),
                )
            )
        return save_artifact(
            self._state, self.report, directory, steps, try_load=try_load, **companions
        )

    def _sizes_on_disk(self, place: pathlib.Path) -> None:
        self.report.disk = (self.report.before.bytes, weight_bytes(place))

    def _onnx_file(self, place: pathlib.Path) -> None:
        path = place / "model.onnx"
        self.report.onnx = dataclasses.replace(self.export_onnx(path), path=path.name)
        self._compare(onnx_check, path)

    def _compare(self, check: Callable[..., Check], path: pathlib.Path) -> None:
        """The row of a file, as `prunec verify` has it. Raises ExportError where it is too far."""
        calls = sample_calls(self._state.graph.program, self._state.samples)
        graph = self.graph_module
        if graph is None or not calls:
            return
        found = check(graph, calls, path, moved(graph, calls))
        self.report.checks = [*(c for c in self.report.checks if c.name != found.name), found]
        if not found.passed:
            raise ExportError(
                f"{path.name} is off by {found.error:.1e} on the calibration's samples "
                f"({found.limit:.1e} allowed): give more calibration data, or deliver without it."
            )

    def _int8_file(self, place: pathlib.Path, mode: str, measure: Sequence[str]) -> None:
        path = place / "model.int8.onnx"
        found = self.quantize_onnx(path, mode, measure=self._batches() if measure else ())
        self.report.int8 = dataclasses.replace(found, path=path.name)
        self._compare(int8_check, path)

    def __repr__(self) -> str:
        r = self.report
        return (
            f"Result({type(self.model).__name__}: {r.before.params:,} -> {r.after.params:,} "
            f"parameters, {r.before.macs:,} -> {r.after.macs:,} MACs)"
        )


def _report(state: Compilation, passes: list[PassReport]) -> Report:
    graph = state.graph
    kept = state.plan.combined()
    sizes = {var: len(entries) for var, entries in kept.items()}
    rows: list[DimensionReport] = []
    stayed = state.dead.stayed
    for d in graph.dimensions.values():
        after = d.size if d.var is None else sizes.get(d.var, d.size)
        if d.blocked is not None:
            rows.append(DimensionReport(d.name, d.kind, d.size, d.size, "blocked", str(d.blocked)))
        elif after < d.size:
            why = "planned" if d.name in state.plan.kept else "already dead"
            rows.append(DimensionReport(d.name, d.kind, d.size, after, "pruned", why))
        else:
            why = stayed.get(
                d.name, "not chosen" if d.exact else f"norm-coupled: {d.statistics[0]}"
            )
            rows.append(DimensionReport(d.name, d.kind, d.size, d.size, "kept", why))
    rows += _gone(graph)
    call = graph.program.call
    sizes = call.describe() if call is not None else []
    notes = [*graph.program.notes, *state.notes]
    notes += [f"captured for sizes within: {line}" for line in sizes]
    notes += [f"{name}: {text}" for name, text in stayed.items() if name not in state.plan.kept]
    emitted = "a masked model: nothing is smaller before SparseToDense"
    if state.dense is not None:
        own = type(graph.source).__name__
        emitted = own if state.dense.module is not None else "a graph module"
        if state.dense.module is None:
            notes.append(f"the module back end does not hold: {state.dense.module_reason}")
    notes += [f"not proven: {c.name}: {c.unproven}" for c in state.checks if c.state == NOT_PROVEN]
    return Report(
        model=type(graph.source).__name__,
        emitted=emitted,
        before=cost(graph.whole),
        after=_after(state),
        dimensions=rows,
        passes=passes,
        checks=list(state.checks),
        branches=list(state.branches.values()),
        notes=notes,
        aim=state.aim,
        sizes={"axes": call.axes() if call is not None else [], "within": sizes},
    )


def _after(state: Compilation) -> Cost:
    """The cost of what there is now: biases that hold folded constants and indices of selections
    included, constants that a bias took in left out."""
    graph, kept = state.graph, state.plan.combined()
    after = cost(graph, kept)
    if state.dense is None:
        return after
    before, now = graph.program.tensors, state.dense.program.tensors
    changes = [(1, t) for name, t in now.items() if name not in before]
    changes += [
        (-1, cut_tensor(t, graph.inference.tensors[name], kept))
        for name, t in before.items()
        if name not in now
    ]
    changes += [(-1, t) for t in _taken_along(state)]
    changes += [(1, t) for t in _left_behind(state)]
    return dataclasses.replace(
        after,
        params=after.params + sum(k * t.numel() for k, t in changes if isinstance(t, nn.Parameter)),
        bytes=after.bytes + sum(k * t.numel() * t.element_size() for k, t in changes),
    )


def _taken_along(state: Compilation) -> list[Tensor]:
    """Tensors that no captured graph reads, of modules that left the user's class."""
    source, plan = state.graph.source, state.plan
    whole = state.graph.whole
    read = {id(t) for t in (*whole.program.tensors.values(), *whole.beside.values())}
    paths = [*plan.stubs, *(f"{path}.{i}" for path, gone in plan.members.items() for i in gone)]
    found: dict[int, Tensor] = {}
    for path in paths:
        part = source.get_submodule(path)
        found.update({id(t): t for t in (*part.parameters(), *part.buffers())})
    return [t for key, t in found.items() if key not in read]


def _left_behind(state: Compilation) -> list[Tensor]:
    """Tensors of dropped branches that the user's class still has: no module of their own held
    them."""
    module = state.dense.module if state.dense is not None else None
    if module is None or not state.plan.dropped:
        return []
    gone = state.graph.whole.program.tensors.keys() - state.graph.program.tensors.keys()
    own = (*module.named_parameters(), *module.named_buffers())
    return [t for name, t in own if state.plan.thinning.original(name) in gone]


def _gone(graph: Graph) -> Iterator[DimensionReport]:
    """The dimensions that only dropped branches had."""
    remaining = set(graph.program.tensors) | set(graph.beside)
    for d in graph.whole.dimensions.values() if graph.drops else ():
        names = {name for name, _ in d.members}
        if not names or names & remaining:
            continue
        owner = next((x.name for x in graph.drops if names & set(x.tensors)), graph.drops[0].name)
        why = f"gone with dropped branch '{owner}'"
        yield DimensionReport(d.name, d.kind, d.size, 0, "dropped", why)
