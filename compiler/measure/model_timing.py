"""Two models timed on the same inputs under one runtime: eager torch, compiled, or onnxruntime."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..capture.batch import Arguments, batch_size, resize_batch
from ..capture.eval_mode import eval_mode
from ..capture.examples import copied_call, fresh_containers
from ..capture.quiet_meta import quiet_meta
from ..capture.untouched import untouched
from ..cause import cause
from ..errors import ExportError, MeasureError
from ..option_types import checked
from .environment import dtype_name
from .timing import Call, Comparison, compare

RUNTIMES = ("torch", "compile", "onnxruntime")


@checked()
def compare_modules(
    before: nn.Module,
    after: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    runtime: str = "torch",
    device: torch.device | str = "cpu",
    batch: int | None = None,
    threads: int | None = None,
    onnx_before: Path | str | None = None,
    onnx_after: Path | str | None = None,
    min_rounds: int = 15,
    max_seconds: float = 6.0,
    warmup_seconds: float = 1.0,
    seed: int = 0,
    attempts: int = 1,
) -> Comparison:
    """How much faster `after` runs than `before`, on `args`, `kwargs` moved to `device`.

    `batch`: None times the example inputs as they are; a number repeats or cuts their examples to
    it (`resize_batch`). `threads`: torch's number for the duration; onnxruntime gets the same one.
    Under "onnxruntime" the two .onnx files are timed, exported for the purpose where none is given.
    Compiling and exporting are not in the time. Both models run in eval mode and keep their own.

    Raises:
        MeasureError: the two are not alike (device, dtype, compiled or not, one .onnx file), or
            the runtime is unknown or cannot run here.
        ExportError: a model cannot be exported, or onnxruntime refuses the file.
    """
    if runtime not in RUNTIMES:
        raise MeasureError(f"Unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}.")
    if (onnx_before is None) != (onnx_after is None):
        raise MeasureError("Only one of the two .onnx files is given: give both, or neither.")
    device = torch.device(device)
    dtype = _like_with_like(before, after, device, any_device=runtime == "onnxruntime")
    args, kwargs = tuple(args), dict(kwargs or {})
    if batch is not None:
        args, kwargs = resize_batch(args, kwargs, batch)

    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(before, after))
        stack.enter_context(eval_mode(before, after))
        stack.enter_context(_threads(threads))
        if runtime == "onnxruntime":
            files = (onnx_before, onnx_after)
            calls = _onnx_calls((before, after), files, args, kwargs, device, stack)
        else:
            calls = _torch_calls((before, after), args, kwargs, device, runtime)
        peaks = _peaks(calls, (before, after), device, runtime)
        timed = compare(
            *calls, device=device, runtime=runtime, min_rounds=min_rounds, seed=seed,
            max_seconds=max_seconds, warmup_seconds=warmup_seconds, attempts=attempts,
        )  # fmt: skip
    name = dtype_name(dtype) if dtype else None
    return dataclasses.replace(
        timed, batch=batch_size(args, kwargs), dtype=name,
        versions=timed.versions | {"dtype": name},
        peak_before_bytes=peaks[0], peak_after_bytes=peaks[1],
    )  # fmt: skip


def _like_with_like(
    before: nn.Module, after: nn.Module, device: torch.device, any_device: bool
) -> torch.dtype | None:
    """The common floating dtype of both models, after checking what they must share."""
    dtypes, compiled = [], []
    for side, model in (("before", before), ("after", after)):
        tensors = [*model.parameters(), *model.buffers()]
        elsewhere = {t.device for t in tensors if not _same_device(t.device, device)}
        if elsewhere and not any_device:
            raise MeasureError(
                f"The model '{side}' has tensors on {elsewhere.pop()} and is to be timed on"
                f" {device}: move it there first, with .to('{device}')."
            )
        dtypes.append({p.dtype for p in model.parameters() if p.is_floating_point()})
        compiled.append(hasattr(model, "_orig_mod"))
    if dtypes[0] and dtypes[1] and dtypes[0] != dtypes[1]:
        shown = [", ".join(sorted(map(dtype_name, d))) for d in dtypes]
        raise MeasureError(
            f"The models have different dtypes ({shown[0]} before, {shown[1]} after): convert one,"
            " or the ratio would be that of the dtypes."
        )
    if compiled[0] != compiled[1]:
        raise MeasureError(
            "One of the two models is compiled: pass both as they are, with runtime='compile'."
        )
    return min(dtypes[0] | dtypes[1], key=str, default=None)


def _torch_calls(
    models: tuple[nn.Module, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    runtime: str,
) -> tuple[Call, Call]:
    args, kwargs = copied_call(*_moved(args, kwargs, device))
    nested = any(isinstance(value, (list, dict)) for value in (*args, *kwargs.values()))

    def call(model: Callable[..., Any]) -> Call:
        if not nested:
            return lambda: model(*args, **kwargs)

        def fresh() -> Any:
            own, named = fresh_containers(args, kwargs)
            return model(*own, **named)

        return fresh

    if runtime == "torch":
        return call(models[0]), call(models[1])
    # Past its limit of versions per function torch.compile runs eagerly, without an error: a
    # series of comparisons would become one of eager models.
    torch._dynamo.reset()
    calls = [call(torch.compile(model, dynamic=False)) for model in models]
    try:
        with torch.inference_mode(), quiet_meta():
            for compiled in calls:
                compiled()
    except Exception as error:  # whatever dynamo, inductor or the C++ compiler raise
        raise MeasureError(
            f"torch.compile cannot run a model here ({cause(error)}): install what it names, or"
            " time with runtime='torch'."
        ) from error
    return calls[0], calls[1]


def _onnx_calls(
    models: tuple[nn.Module, nn.Module],
    files: tuple[Path | str | None, Path | str | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    stack: contextlib.ExitStack,
) -> tuple[Call, Call]:
    # Exporting needs this package's other half, and only here.
    from ..onnx_files.export import export_onnx
    from ..onnx_files.names import input_tensors
    from ..onnx_files.session import OnnxSession

    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prunec-")))
    calls: list[Call] = []
    for name, model, file in zip(("before", "after"), models, files, strict=True):
        if file is None:
            file = scratch / f"{name}.onnx"
            export_onnx(model, *_moved(args, kwargs, _device(model)), file, dynamic_batch=False)
        session = OnnxSession(file, device=device)
        try:
            calls.append(session.bound(input_tensors(model, args, kwargs)))
            calls[-1]()
        except ExportError as error:
            raise MeasureError(
                f"The .onnx file of the model '{name}' cannot run these inputs: {error} A file with"
                " a fixed batch runs no other."
            ) from error
    return calls[0], calls[1]


def _peaks(
    calls: tuple[Call, Call],
    models: tuple[nn.Module, nn.Module],
    device: torch.device,
    runtime: str,
) -> tuple[int | None, int | None]:
    """Bytes of each model's own weights and what one call allocates above them at most."""
    if device.type != "cuda" or runtime == "onnxruntime":
        return None, None
    peaks = []
    for call, model in zip(calls, models, strict=True):
        storages = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        weights = {storage.data_ptr(): storage.nbytes() for storage in storages}
        with torch.inference_mode():
            call()
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            allocated = torch.cuda.memory_allocated(device)
            call()
            torch.cuda.synchronize(device)
        above = torch.cuda.max_memory_allocated(device) - allocated
        peaks.append(above + sum(weights.values()))
    return peaks[0], peaks[1]


def _moved(args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Arguments:
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), (args, kwargs))


def _device(model: nn.Module) -> torch.device:
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _same_device(a: torch.device, b: torch.device) -> bool:
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    had = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(had)
