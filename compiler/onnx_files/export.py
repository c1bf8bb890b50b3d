"""A torch model as a checked .onnx file: exported, compared with the model, then put in place."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import batch_size, resize_batch
from ..capture.eval_mode import eval_mode
from ..cause import cause
from ..errors import ExportError
from .names import bind, in_order, input_tensors, rename
from .parity import prove_parity, reference_outputs
from .quiet import quiet

# Protobuf ends at 2 GiB; beyond this many bytes the weights lie in a file beside the model.
_EXTERNAL_ABOVE = 1_800_000_000

# Core ATen comes second: it splits fused ops, but some graphs convert only that way (a `reshape`
# of a permuted tensor, as in Swin's shifted windows, becomes a `view` that does not fit).
_ATTEMPTS = (("batch", False), ("batch", True), (None, False), (None, True))


@dataclasses.dataclass(frozen=True)
class OnnxReport:
    """What was exported and how far it is from the model.

    `bytes` counts the model file and its data file. `inputs` and `outputs` are names in order.
    `max_abs_error` and `max_rel_error` are the worst over all outputs and all batch sizes tried;
    the relative one is against the largest value of the output.
    """

    path: str
    opset: int
    bytes: int
    inputs: list[str]
    outputs: list[str]
    dynamic_batch: bool
    max_abs_error: float
    max_rel_error: float
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


def export_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    path: Path | str,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    tolerance: float = 1e-3,
) -> OnnxReport:
    """Export `module` to `path`, after proving the file against the module with onnxruntime.

    `args`, `kwargs`: one call of `module.forward`. Tensors become inputs, named as the arguments;
    anything else (flags, None, sizes) is baked in. Outputs are the tensors of the result, named by
    their path in it. Axis 0 of every input that has the batch size there becomes dynamic, unless
    the exporter cannot: then the batch is fixed and `notes` says why. `opset`: the exporter's
    choice when None. `tolerance`: largest relative error; half precision is granted 8 roundings.

    Nothing appears at `path` that has not passed; weights above 1.8 GB go to "NAME.data" beside it.

    Raises:
        ExportError: the model cannot be exported, or the file disagrees with it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"There is no directory for {path.name}: create {path.parent} first.")
    args, kwargs = tuple(args), in_order(module, tuple(args), dict(kwargs or {}))
    batch = batch_size(args, kwargs)
    inputs = list(input_tensors(module, args, kwargs))
    with eval_mode(module), torch.no_grad():
        outputs = list(reference_outputs(module, args, kwargs))
    notes: list[str] = []
    failures: list[ExportError] = []
    for axis, decompose in _ATTEMPTS:
        if axis and not (dynamic_batch and batch):
            continue
        others = [size for size in (1, (batch or 0) + 1) if size != batch] if axis else []
        # Beside the target, so that the final move stays within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
            draft = Path(scratch) / path.name
            try:
                with eval_mode(module), torch.no_grad():
                    program = _convert(module, args, kwargs, opset, axis, decompose)
                    rename(program.model, inputs, outputs)
                    chosen = _write(program, draft, opset)
                    parity = prove_parity(
                        module, args, kwargs, draft, batches=[batch, *others], tolerance=tolerance
                    )
            except ExportError as failure:
                failures.append(failure)
                continue
            size = _put_in_place(draft, path)
        if failures and axis is None and dynamic_batch:
            notes.append(f"the batch is fixed at {batch}: {failures[0]}")
        if decompose:
            notes.append(f"exported by way of core ATen: {failures[-1]}")
        return OnnxReport(
            path=str(path),
            opset=chosen,
            bytes=size,
            inputs=parity.inputs,
            outputs=parity.outputs,
            dynamic_batch=axis is not None,
            max_abs_error=parity.max_abs_error,
            max_rel_error=parity.max_rel_error,
            notes=[*notes, *parity.notes],
        )
    # The plain attempt at a fixed batch tells most: the one after it is a workaround.
    raise failures[-2]


def _convert(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int | None,
    axis: str | None,
    decompose: bool,
) -> Any:
    """The exporter's ONNXProgram, with axis 0 of the batched inputs named `axis` if given."""
    if axis and batch_size(args, kwargs) == 1:
        # torch.export takes a size of 1 for a constant.
        args, kwargs = resize_batch(args, kwargs, 2)
    batch = batch_size(args, kwargs)

    def axes(mark: Any) -> Any:
        def of(leaf: Any) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
            return {0: mark} if batched else None

        return pytree.tree_map(of, bind(module, args, kwargs)) if axis else None

    options: dict[str, Any] = {"dynamo": True, "verbose": False, "opset_version": opset}
    try:
        with quiet():
            if not decompose:
                program = torch.onnx.export(
                    module, args, kwargs=kwargs or None, dynamic_shapes=axes(axis), **options
                )
            else:
                dynamic = axes(torch.export.Dim.DYNAMIC)
                exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic)
                core = exported.run_decompositions()
                program = torch.onnx.export(core, dynamic_shapes=axes(axis), **options)
    except Exception as error:  # the exporter raises whatever its many parts raise
        raise ExportError(
            f"torch's ONNX exporter fails: {cause(error)}; rewrite that part of the model, or"
            " deliver it without ONNX."
        ) from error
    assert program is not None
    if axis and not any(_is_symbolic(value.shape) for value in program.model.graph.inputs):
        raise ExportError("The model's graph holds for one batch size only.")
    return program


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


def _is_symbolic(shape: Any) -> bool:
    return shape is not None and len(shape) > 0 and not isinstance(shape[0], int)
