"""A torch model as a checked .onnx file: exported, compared with the model, then put in place."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import Arguments, batch_size, resize_batch
from ..capture.eval_mode import eval_mode
from ..capture.export import named_keywords
from ..capture.sequence import sequence_lengths, shorten
from ..cause import cause
from ..errors import ExportError
from ..ir.call_spec import CallSpec
from ..option_types import checked
from .dtypes import refuse_dtypes
from .experts import BATCHED, batched_experts, groups_experts
from .names import bind, in_order, input_tensors, name_axes, rename
from .parity import prove_parity, reference_outputs
from .place import require_writable
from .quiet import quiet
from .ranges import exported_spec, own_spec, require_unbounded

# Protobuf ends at 2 GiB; beyond this many bytes the weights lie in a file beside the model.
_EXTERNAL_ABOVE = 1_800_000_000

BATCH, SEQUENCE = "batch", "sequence"
# Core ATen comes second: it splits fused ops, but some graphs convert only that way (a `reshape`
# of a permuted tensor, as in Swin's shifted windows, becomes a `view` that does not fit).
_ATTEMPTS: tuple[tuple[tuple[str, ...], bool], ...] = (
    ((BATCH, SEQUENCE), False),
    ((BATCH,), False),
    ((BATCH, SEQUENCE), True),
    ((BATCH,), True),
    ((), False),
    ((), True),
)


@dataclasses.dataclass(frozen=True)
class OnnxReport:
    """What was exported and how far it is from the model.

    `bytes` counts the model file and its data file. `inputs` and `outputs` are names in order.
    `dynamic_sequence`: token inputs may have any length; False where there are none.
    `max_abs_error` and `max_rel_error` are the worst over all outputs and all batch sizes tried;
    the relative one is against the largest value of the output.
    """

    path: str
    opset: int
    bytes: int
    inputs: list[str]
    outputs: list[str]
    dynamic_batch: bool
    dynamic_sequence: bool
    max_abs_error: float
    max_rel_error: float
    notes: list[str]
    ranges: list[str] = dataclasses.field(default_factory=list)

    def axes(self) -> str:
        """Which axes of the inputs may have any size, in words."""
        found = {"batch": self.dynamic_batch, "sequence length": self.dynamic_sequence}
        names = [name for name, dynamic in found.items() if dynamic]
        if names and self.ranges:
            return f"{' and '.join(names)} within {'; '.join(self.ranges)}"
        return f"any {' and '.join(names)}" if names else "all sizes fixed"

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


@checked()
def export_onnx(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    path: Path | str,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
    bounded_axes: str = "static",
) -> OnnxReport:
    """Export `module` to `path`, after proving the file against the module with onnxruntime.

    `args`, `kwargs`: one call of `module.forward`. Tensors become inputs, named as the arguments;
    anything else (flags, None, sizes) is baked in. Outputs are the tensors of the result, named by
    their path in it. Axis 0 of every input that has the batch size there becomes dynamic, and
    axis 1 of token inputs and what is as long, unless the exporter cannot: then it is fixed and
    `notes` says why. `dynamic_batch` False fixes all. `opset`: the exporter's choice when None.
    `bounded_axes`: where a branch of the model limits a size, that axis is fixed ("static"), since
    a file cannot refuse other sizes, or stays free ("dynamic"); the ranges stand in the file's
    metadata. `tolerance`: largest relative error; half precision is granted 8 roundings.

    Nothing appears at `path` that has not passed; weights above 1.8 GB go to "NAME.data" beside it.

    Raises:
        ExportError: the model cannot be exported, or the file disagrees with it.
    """
    if bounded_axes not in ("static", "dynamic"):
        raise ExportError(f"bounded_axes is 'static' or 'dynamic', not {bounded_axes!r}.")
    path = Path(path)
    require_writable(path)
    refuse_dtypes(module)
    args, kwargs = tuple(args), in_order(module, tuple(args), dict(kwargs or {}))
    batch, lengths = batch_size(args, kwargs), sequence_lengths(args, kwargs)
    possible = {BATCH: bool(dynamic_batch and batch), SEQUENCE: bool(dynamic_batch and lengths)}
    inputs = list(input_tensors(module, args, kwargs))
    with eval_mode(module), torch.no_grad():
        outputs = list(reference_outputs(module, args, kwargs))
    notes: list[str] = []
    failures: dict[tuple[str, ...], ExportError] = {}
    bounded: set[tuple[str, ...]] = set()
    captured: dict[str, None] = {}  # every range met, that of an axis which was then fixed too
    for axes, decompose in _ATTEMPTS:
        if not all(possible[axis] for axis in axes) or axes in bounded:
            continue
        # Beside the target, so that the final move stays within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
            draft = Path(scratch) / path.name
            try:
                with eval_mode(module), batched_experts(module), torch.no_grad():
                    program = _convert(module, args, kwargs, opset, axes, decompose)
                    specs = [exported_spec(program.exported_program, inputs)] if axes else []
                    if (own := own_spec(module)) is not None:
                        specs.append(_on_axes(own, args, kwargs, axes))
                    ranges = list(dict.fromkeys(x for spec in specs for x in spec.describe()))
                    captured |= dict.fromkeys(ranges)
                    if bounded_axes == "static":
                        bounded.add(axes)
                        require_unbounded(module, specs)
                        bounded.discard(axes)
                    if captured:
                        program.model.metadata_props["prunec.sizes"] = "; ".join(captured)
                    rename(program.model, inputs, outputs)
                    name_axes(program.model, _names(module, args, kwargs, axes))
                    chosen = _write(program, draft, opset)
                    calls = _calls(args, kwargs, axes)
                    if own is not None:  # the graph refuses what it was not captured for
                        calls = {
                            kind: call
                            for kind, call in calls.items()
                            if own.admits(pytree.tree_leaves(call))
                        }
                    parity = prove_parity(module, calls, draft, tolerance=tolerance)
            except ExportError as failure:
                failures.setdefault(axes, failure)  # the plain attempt tells most
                continue
            size = _put_in_place(draft, path)
        if possible[SEQUENCE] and SEQUENCE not in axes:
            sizes, why = " and ".join(map(str, lengths)), failures[(BATCH, SEQUENCE)]
            notes.append(f"sequences have the fixed length {sizes}: {why}")
        if possible[BATCH] and not axes:
            notes.append(f"the batch is fixed at {batch}: {failures[(BATCH,)]}")
        if decompose:
            notes.append(f"exported by way of core ATen: {failures[axes]}")
        return OnnxReport(
            path=str(path),
            opset=chosen,
            bytes=size,
            inputs=parity.inputs,
            outputs=parity.outputs,
            dynamic_batch=BATCH in axes,
            dynamic_sequence=SEQUENCE in axes,
            max_abs_error=parity.max_abs_error,
            max_rel_error=parity.max_rel_error,
            notes=[*notes, *parity.notes],
            ranges=ranges,
        )
    raise failures[()]


def _on_axes(
    spec: CallSpec, args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[str, ...]
) -> CallSpec:
    """The description where some of these axes are bounded, an empty one where none is."""
    leaves = pytree.tree_leaves((args, kwargs))
    batch = batch_size(args, kwargs) if axes else None
    lengths = sequence_lengths(args, kwargs) if SEQUENCE in axes else []
    free = {(i, axis) for i, leaf in enumerate(leaves) for axis in _axes(leaf, batch, lengths)}
    return spec if free & spec.branches() else CallSpec(())


def _calls(
    args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[str, ...]
) -> dict[str, Arguments]:
    """What the file is compared on: the example, and other sizes of what is dynamic."""
    calls: dict[str, Arguments] = {"the example": (args, kwargs)}
    batch = batch_size(args, kwargs)
    for size in (1, (batch or 0) + 1) if BATCH in axes else ():
        if size != batch:
            calls[f"batch {size}"] = resize_batch(args, kwargs, size)
    if SEQUENCE in axes:
        shorter = shorten(args, kwargs)
        lengths = " and ".join(map(str, sequence_lengths(*shorter)))
        calls[f"length {lengths or 1}"] = shorter
    return calls


def _convert(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int | None,
    axes: tuple[str, ...],
    decompose: bool,
) -> Any:
    """The exporter's ONNXProgram, in which `axes` have names."""
    if axes and batch_size(args, kwargs) == 1:
        # torch.export takes a size of 1 for a constant.
        args, kwargs = resize_batch(args, kwargs, 2)
    batch = batch_size(args, kwargs)
    lengths = sequence_lengths(args, kwargs) if SEQUENCE in axes else []

    def shapes(mark: Any = None) -> Any:
        """`mark` for every dynamic axis, by default its name."""

        def of(leaf: Any) -> Any:
            found = _axes(leaf, batch, lengths)
            return {axis: mark or name for axis, name in found.items()} or None

        return pytree.tree_map(of, bind(module, args, kwargs)) if axes else None

    options: dict[str, Any] = {"dynamo": True, "verbose": False, "opset_version": opset}
    try:
        with quiet(), named_keywords(module, kwargs):
            if not decompose:
                program = torch.onnx.export(
                    module, args, kwargs=kwargs or None, dynamic_shapes=shapes(), **options
                )
            else:
                dynamic = shapes(torch.export.Dim.DYNAMIC)
                exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic)
                core = exported.run_decompositions()
                program = torch.onnx.export(core, dynamic_shapes=shapes(), **options)
    except Exception as error:  # the exporter raises whatever its many parts raise
        remedy = "rewrite that part of the model, or deliver it without ONNX"
        if groups_experts(module):
            remedy = f"call model.set_experts_implementation('{BATCHED}') before it is compiled"
        raise ExportError(f"torch's ONNX exporter fails: {cause(error)}; {remedy}.") from error
    assert program is not None
    ends = [value.shape for value in program.model.graph.inputs]
    if axes and not any(_is_symbolic(shape, 0) for shape in ends):
        raise ExportError("The model's graph holds for one batch size only.")
    if SEQUENCE in axes and not any(_is_symbolic(shape, 1) for shape in ends):
        raise ExportError("The model's graph holds for one length of sequences only.")
    return program


def _axes(leaf: Any, batch: int | None, lengths: list[int]) -> dict[int, str]:
    """The dynamic axes of an argument, with their names."""
    if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != batch:
        return {}
    found = {0: BATCH}
    if leaf.dim() > 1 and leaf.shape[1] in lengths:
        place = lengths.index(leaf.shape[1])
        found[1] = f"{SEQUENCE}_{place + 1}" if place else SEQUENCE
    return found


def _names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axes: tuple[str, ...]
) -> list[dict[int, str]]:
    """The names of each input's axes."""
    lengths = sequence_lengths(args, kwargs) if SEQUENCE in axes else []
    batch = batch_size(args, kwargs) if axes else None
    return [_axes(leaf, batch, lengths) for leaf in input_tensors(module, args, kwargs).values()]


def _write(program: Any, draft: Path, opset: int | None) -> int:
    """Write and check the file; return its opset."""
    import onnx

    model = program.model
    written = model.opset_imports[""]
    if opset is not None and written != opset:
        raise ExportError(
            f"The exporter wrote opset {written} where {opset} was asked for: ask for {written},"
            " or leave `opset` out."
        )
    # Stack traces hold source paths, and weigh more than the graph.
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    with quiet():
        program.save(draft, external_data=weights > _EXTERNAL_ABOVE)
    try:
        onnx.checker.check_model(str(draft))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The exported file is no valid ONNX model: {cause(error)}.") from error
    return written


def _put_in_place(draft: Path, path: Path) -> int:
    data, final_data = (Path(f"{file}.data") for file in (draft, path))
    size = draft.stat().st_size
    if data.exists():
        size += data.stat().st_size
        # Interrupted in between, no model stands beside the weights of another.
        path.unlink(missing_ok=True)
        data.replace(final_data)
        draft.replace(path)
    else:
        draft.replace(path)
        final_data.unlink(missing_ok=True)
    return size


def _is_symbolic(shape: Any, axis: int) -> bool:
    return shape is not None and len(shape) > axis and not isinstance(shape[axis], int)
