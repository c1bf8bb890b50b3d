"""An .onnx file in int8, by onnxruntime's own quantiser, and how far it is from the model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.eval_mode import eval_mode
from ..cause import cause
from ..errors import ExportError
from ..option_types import checked
from .names import input_tensors
from .parity import reference_outputs
from .place import require_writable
from .quiet import quiet
from .saturation import products_saturate
from .session import OnnxSession

MODES = ("dynamic", "static")
INT8_LIMIT = 0.2  # of the outputs' root mean square: what is further off is another model
# Convolutions have no fast kernel with activations quantised on the fly: those take "static".
_DYNAMIC_OPS = ["MatMul", "Gemm", "Gather"]
_STATIC_OPS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What int8 did to a file: bytes before and after, the nodes that compute in int8, and how far
    the outputs are from the float model's on `batches` batches: the relative root mean square
    error, and the largest error against the largest value. `weight_bits`: 7 where the processor's
    byte products would overflow with 8."""

    path: str
    mode: str
    bytes_before: int
    bytes: int
    quantized: int
    batches: int
    rms_error: float
    max_rel_error: float
    weight_bits: int = 8

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


@checked()
def quantize_onnx(
    module: nn.Module,
    source: Path | str,
    path: Path | str,
    calls: Sequence[Call],
    *,
    mode: str = "dynamic",
    per_channel: bool = True,
    weight_bits: int | None = None,
    limit: float = INT8_LIMIT,
) -> QuantizeReport:
    """Write `source`, a float .onnx of `module`, to `path` with int8 weights.

    `mode`: "dynamic" takes the range of activations from each input (transformers, linear layers);
    "static" takes it from `calls`, the arguments of forward on calibration data (convolutions).
    `calls` are also what the file is compared with the module on; those of other shapes than the
    file takes are left out. `weight_bits`: 8, or 7 for processors without VNNI; by default what
    this machine computes right, and a file of 7 is right on every machine. Nothing appears at
    `path` that onnxruntime does not load and run, or whose relative root mean square error on
    `calls` is above `limit`.

    Raises:
        ExportError: an unknown mode, no calls, a file onnxruntime cannot quantise or run, or one
            that is too far from the module.
    """
    source, path = Path(source), Path(path)
    if mode not in MODES:
        raise ExportError(f"int8 is 'dynamic' or 'static', not {mode!r}.")
    if weight_bits not in (None, 7, 8):
        raise ExportError(f"int8 weights have 7 or 8 bits, not {weight_bits!r}.")
    if not calls:
        raise ExportError("int8 needs calibration data to choose ranges or to be compared on.")
    require_writable(path)
    given = [(call, input_tensors(module, *call)) for call in calls]
    given = [(call, feed) for call, feed in given if fits(source, feed)]
    if not given:
        raise ExportError(
            f"{source.name} takes none of the calibration batches: {_sizes(source)} was exported,"
            " and the batches have other shapes; pad them to that (--pad-to)."
        )
    calls, feeds = [call for call, _ in given], [feed for _, feed in given]
    bits = weight_bits or (7 if products_saturate() else 8)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        try:
            with quiet():
                _quantize(source, draft, feeds, mode, per_channel, bits, Path(scratch))
        except Exception as error:  # the quantiser raises whatever its many parts raise
            raise ExportError(
                f"onnxruntime cannot quantise {source.name}: {cause(error)}; deliver the float"
                f" file, or try mode='{MODES[mode == 'dynamic']}'."
            ) from error
        rms, worst = _distance(module, calls, feeds, draft)
        quantized = _count(draft)
        if not quantized:
            raise ExportError(
                f"onnxruntime found nothing to quantise in {source.name} with mode='{mode}': try"
                f" mode='{MODES[mode == 'dynamic']}'."
            )
        if not rms <= limit:
            raise ExportError(
                f"in int8 the outputs are off by {rms:.0%} of their root mean square ({limit:.0%}"
                f" allowed): deliver the float file, give more calibration data, or try mode="
                f"'{MODES[mode == 'dynamic']}'."
            )
        draft.replace(path)
    return QuantizeReport(
        str(path), mode, _bytes(source), _bytes(path), quantized, len(calls), rms, worst, bits
    )


def fits(source: Path, feed: dict[str, Tensor]) -> bool:
    """Whether the file takes inputs of these shapes; an axis with a name takes any size."""
    return all(
        name in feed
        and len(shape) == feed[name].dim()
        and all(isinstance(a, str) or a == b for a, b in zip(shape, feed[name].shape, strict=True))
        for name, shape, _ in OnnxSession(source).signature()
    )


def _sizes(source: Path) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape, _ in OnnxSession(source).signature())


def _quantize(
    source: Path,
    draft: Path,
    feeds: Sequence[dict[str, Tensor]],
    mode: str,
    per_channel: bool,
    bits: int,
    scratch: Path,
) -> None:
    import onnx
    from onnxruntime import quantization

    # The quantiser turns Gemm's weights round and trips over the shapes noted for them: it infers
    # shapes itself.
    ready = scratch / "ready.onnx"
    model = onnx.load(str(source))
    del model.graph.value_info[:]
    large = sum(t.ByteSize() for t in model.graph.initializer) > 2**30
    onnx.save(model, str(ready), save_as_external_data=large)
    if mode == "dynamic":
        quantization.quantize_dynamic(
            ready,
            draft,
            op_types_to_quantize=_DYNAMIC_OPS,
            per_channel=per_channel,
            reduce_range=bits == 7,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return
    names = OnnxSession(source).inputs

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            feed = next(self.left, None)
            if feed is None:
                return None
            return {n: feed[n].detach().cpu().contiguous().numpy() for n in names}

    quantization.quantize_static(
        ready,
        draft,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        reduce_range=bits == 7,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=_STATIC_OPS,
        extra_options={"MatMulConstBOnly": True},
    )


def int8_error(module: nn.Module, calls: Sequence[Call], path: Path) -> float:
    """The relative root mean square error of a file against the module. Raises ExportError where
    onnxruntime does not load or run it."""
    return _distance(module, calls, [input_tensors(module, *call) for call in calls], path)[0]


def _distance(
    module: nn.Module, calls: Sequence[Call], feeds: Sequence[dict[str, Tensor]], path: Path
) -> tuple[float, float]:
    """Relative root mean square error and largest relative error over all float outputs."""
    session = OnnxSession(path)
    missed = energy = worst = 0.0
    for call, feed in zip(calls, feeds, strict=True):
        with eval_mode(module), torch.no_grad():
            expected = reference_outputs(module, *call)
        for a, b in zip(expected.values(), session.run(feed), strict=True):
            if not a.is_floating_point() or a.numel() == 0:
                continue
            a, b = a.detach().cpu().double(), b.double()
            finite = a.isfinite()
            if not bool(b[finite].isfinite().all()):
                raise ExportError("the int8 file gives values that are not finite.")
            error = (a - b)[finite].abs()
            missed += float(error.square().sum())
            energy += float(a[finite].square().sum())
            scale = float(a[finite].abs().max()) if bool(finite.any()) else 0.0
            worst = max(worst, float(error.max()) / scale if scale else 0.0)
    return (missed / energy) ** 0.5 if energy else 0.0, worst


def _count(path: Path) -> int:
    """The weights of 8 bits: scales' zero points, which are such too, have one axis or none."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    small = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    return sum(t.data_type in small and len(t.dims) > 1 for t in graph.initializer)


def _bytes(path: Path) -> int:
    data = Path(f"{path}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
