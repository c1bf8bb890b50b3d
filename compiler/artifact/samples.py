"""A few inputs that are kept with an artifact: the example and calibration data, few rows of it.

Compile and verify compare on the same ones, so that they agree; and an int8 file, whose ranges are
those of the calibration data, is judged on such data.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from ..capture.batch import Arguments
from ..errors import ArtifactError
from ..ir.program import Program
from ..verify.sizes import few_rows
from .files import SAMPLES
from .tensor_store import load_tensors, save_tensors

BATCHES, ROWS = 2, 4  # of calibration data
LIMIT = 64 << 20  # bytes: an example alone that is larger is not kept


def sample_inputs(program: Program, calibration: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The example's flat inputs as they are, since files may have fixed sizes, and few rows of the
    first calibration batches; as many of these as are not too large."""
    found: list[list[Any]] = []
    room = LIMIT
    for flat in (
        program.flat_inputs(),
        *(few_rows(program, flat, ROWS) for flat in calibration[:BATCHES]),
    ):
        tensors = [x for x in flat if isinstance(x, Tensor)]
        room -= sum(x.numel() * x.element_size() for x in tensors)
        if room >= 0 and not any(x.is_meta for x in tensors):
            found.append(list(flat))
    return found


def sample_calls(program: Program, calibration: Sequence[Sequence[Any]]) -> list[Arguments]:
    """The samples as arguments."""
    flats = sample_inputs(program, calibration)
    return [pytree.tree_unflatten(flat, program.in_spec) for flat in flats]


def save_samples(flats: Sequence[Sequence[Any]], place: pathlib.Path) -> None:
    """Write the tensors of flat inputs, by the number of the sample and of the input, if any."""
    tensors = {
        f"{i}.{j}": x.detach().clone()
        for i, flat in enumerate(flats)
        for j, x in enumerate(flat)
        if isinstance(x, Tensor)
    }
    if tensors:
        save_tensors(tensors, place / SAMPLES)


def load_samples(path: pathlib.Path, example: Sequence[Any]) -> list[list[Any]]:
    """The flat inputs that were saved, on the CPU. `example`: the captured ones, whose values that
    are no tensors are every sample's. Raises ArtifactError for a file that does not fit them."""
    tensors = load_tensors(path, "cpu")
    places = [j for j, x in enumerate(example) if isinstance(x, Tensor)]
    count = len(tensors) // max(len(places), 1)
    if tensors.keys() != {f"{i}.{j}" for i in range(count) for j in places}:
        raise ArtifactError(f"{path} does not hold the model's inputs: compile again.")
    return [list(_sample(tensors, example, i)) for i in range(count)]


def _sample(tensors: dict[str, Tensor], example: Sequence[Any], number: int) -> Iterator[Any]:
    for j, x in enumerate(example):
        yield tensors[f"{number}.{j}"] if isinstance(x, Tensor) else x
