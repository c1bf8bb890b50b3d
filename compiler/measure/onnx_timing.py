"""Two .onnx files timed side by side on inputs drawn from their own signatures."""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from torch import Tensor

from ..errors import MeasureError
from ..onnx_files.session import OnnxSession
from .timing import Comparison, compare

DEFAULT_SIZE = 32  # of a dynamic axis that is not the batch


Signature = list[tuple[str, tuple[int | str, ...], str]]


def fixed_batch(*paths: pathlib.Path | str) -> int | None:
    """The batch a file was exported at, where no first axis of its inputs is dynamic; of several
    files that of the first one that has such a batch; else None."""
    own = (_own_batch(OnnxSession(path).signature()) for path in paths)
    return next((size for size in own if size is not None), None)


def compare_onnx_files(
    before: pathlib.Path | str, after: pathlib.Path | str, batch: int, *, device: str = "cpu"
) -> Comparison:
    """Time two files with equal input signatures at a batch size.

    A dynamic first axis gets `batch`, other dynamic axes 32; floats are normal, integers 1.
    Raises MeasureError when the signatures differ, or the files are fixed at another batch.
    """
    a, b = OnnxSession(before, device=device), OnnxSession(after, device=device)
    signature = _common(a.signature(), b.signature())
    if signature is None:
        raise MeasureError(
            f"{before} and {after} take different inputs; compare two exports of one model."
        )
    own = _own_batch(signature)
    if own not in (None, batch):
        raise MeasureError(
            f"{before} or {after} is fixed at batch {own} and runs at no other: leave --batch "
            f"{batch} out, or export both with a dynamic batch."
        )
    inputs = {name: _drawn(shape, kind, batch) for name, shape, kind in signature}
    timed = compare(a.bound(inputs), b.bound(inputs), device=device, runtime="onnxruntime")
    return dataclasses.replace(timed, batch=batch)


def _common(one: Signature, other: Signature) -> Signature | None:
    """What both files take: an axis that one of them fixed has its size; None where they differ in
    more than that and the names of axes."""
    if [(n, len(s), k) for n, s, k in one] != [(n, len(s), k) for n, s, k in other]:
        return None
    found: Signature = []
    for (name, a, kind), (_, b, _) in zip(one, other, strict=True):
        sizes = [{s for s in pair if isinstance(s, int)} for pair in zip(a, b, strict=True)]
        if any(len(fixed) > 1 for fixed in sizes):
            return None
        found.append((name, tuple(next(iter(f), x) for f, x in zip(sizes, a, strict=True)), kind))
    return found


def _own_batch(signature: Signature) -> int | None:
    """As `capture.batch.batch_size` finds it in tensors: the first axis that most inputs share."""
    first = [shape[0] for _, shape, _ in signature if shape]
    sizes = [size for size in first if isinstance(size, int)]
    return max(sizes, key=sizes.count) if sizes and len(sizes) == len(first) else None


def _drawn(shape: tuple[int | str, ...], kind: str, batch: int) -> Tensor:
    sizes = [
        s if isinstance(s, int) else batch if axis == 0 else DEFAULT_SIZE
        for axis, s in enumerate(shape)
    ]
    generator = torch.Generator().manual_seed(0)
    if "float" in kind:
        dtype = torch.float16 if "16" in kind else torch.float32
        return torch.randn(sizes, generator=generator).to(dtype)
    if "bool" in kind:
        return torch.ones(sizes, dtype=torch.bool)
    return torch.ones(sizes, dtype=torch.int32 if "int32" in kind else torch.int64)
