"""RecalibrateBatchNorm: running statistics measured again, on what the smaller model gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from ..compiler.errors import PlanError
from ..compiler.inference.rule import bound_arguments, op_name
from ..compiler.ir.program import Program
from ..compiler.pass_class import Pass, PassResult
from .calibration.batches import calibration_batches
from .calibration.finite import refuse_rows
from .calibration.moments import wide
from .calibration.outputs import output_error
from .calibration.streams import Stream, measuring
from .calibration.uses import follow

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation

_STILL = 1e-4  # of the variance there was: a channel with less does not move


@dataclasses.dataclass
class RecalibrateBatchNorm(Pass):
    """Set the running mean and variance of every batch norm to those of the calibration data.

    In order of the graph, each on what the recalibrated ones before it give: exact averages over
    all batches, not moving ones (Li et al., "EagleEye", 2020, adaptive batch norm). The variance is
    the unbiased one, as torch keeps it. After Reconstruct, which fits the layers to the statistics
    there are, this seldom helps; the old statistics come back where the model's outputs would not
    come closer to the original's. A channel that these data do not move keeps its statistics: to
    divide by hardly anything would blow up whatever moves it later.

    Args:
        calibration: unlabelled batches; by default those the pipeline was given.
        memory: bytes for what is held at once of all batches; batches beyond are left out.

    Raises:
        PlanError: options out of range, or no calibration data where there is a batch norm.
    """

    calibration: Iterable[Any] | None = None
    memory: int = 2**31

    name: ClassVar[str] = "recalibrate-batch-norm"
    needs: ClassVar[tuple[str, ...]] = ("dense",)
    provides: ClassVar[tuple[str, ...]] = ("repaired",)

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise PlanError(f"memory={self.memory!r} must be at least 1.")

    def run(self, state: Compilation) -> PassResult:
        assert state.dense is not None
        program = state.dense.program
        norms, reasons = find_norms(program)
        details: dict[str, Any] = {"not treated": reasons}
        if not norms:
            return PassResult(False, "no batch norm with running statistics", details)
        batches, left_out = calibration_batches(state, self.calibration, self.memory, self.name)
        names = {n for norm in norms for n in (norm.mean, norm.variance)}
        old = {name: program.tensors[name].detach().clone() for name in names}
        with measuring():
            before = output_error(state, batches)
            moved = _recalibrate(program, norms, batches)
            after = output_error(state, batches)
            worse = before is not None and after is not None and not after < before
            if worse:
                for name, tensor in old.items():
                    program.tensors[name].copy_(tensor)
        details |= {
            "batches": len(batches),
            "batches left out": left_out,
            "output error": [before, after],
            "norms": moved,
        }
        errors = "" if before is None else f", output error {before:.3g} -> {after:.3g}"
        summary = f"{len(moved)} batch norms measured again{errors}"
        summary += "; undone, the old statistics are closer to the original" if worse else ""
        return PassResult(not worse, summary, details)


@dataclasses.dataclass(frozen=True)
class Norm:
    """The running statistics of one batch norm, by name, and the nodes that use them."""

    mean: str
    variance: str
    nodes: tuple[fx.Node, ...]


def find_norms(program: Program) -> tuple[list[Norm], dict[str, str]]:
    """The batch norms in order of their last use; and, per other node, why it is left alone."""
    found: dict[tuple[str, str], list[fx.Node]] = {}
    reasons: dict[str, str] = {}
    for node in program.graph.nodes:
        if op_name(node.target) != "aten::batch_norm":
            continue
        given = bound_arguments(node)
        statistics = given["running_mean"], given["running_var"]
        if given["training"] or any(s is None for s in statistics):
            reasons[node.name] = "it normalises by the batch it is given"
        elif any(s.op != "get_attr" for s in statistics):
            reasons[node.name] = "its statistics are computed"
        else:
            mean, variance = (str(s.target) for s in statistics)
            found.setdefault((mean, variance), []).append(node)
    norms: list[Norm] = []
    for (mean, variance), nodes in found.items():
        if follow(nodes):
            reasons |= {n.name: f"the uses of {mean} follow one another" for n in nodes}
        else:
            norms.append(Norm(mean, variance, tuple(nodes)))
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    return sorted(norms, key=lambda norm: order[norm.nodes[-1]]), reasons


def _recalibrate(
    program: Program, norms: Sequence[Norm], batches: Sequence[Sequence[Any]]
) -> list[str]:
    """Measure and set each norm's statistics; gives the names of the means that were set."""
    stream = Stream(program, batches)
    moved: list[str] = []
    for norm in norms:
        mean, variance = program.tensors[norm.mean], program.tensors[norm.variance]
        pivot = wide(mean.detach())  # moments about it lose no digits to a large mean
        count, total, squares = 0, torch.zeros_like(pivot), torch.zeros_like(pivot)
        for node in norm.nodes:
            if stream.passed(node):
                stream = Stream(program, batches)
            stream.advance(node)
            for batch in range(len(batches)):
                stream.turn_to(batch)
                rows = wide(stream.value_of(bound_arguments(node)["x"])).movedim(1, -1)
                rows = rows.flatten(0, -2) - pivot
                count += len(rows)
                total += rows.sum(0)
                squares += rows.square().sum(0)
                refuse_rows(squares, node.name, batch)
        new_variance = (squares - total.square() / max(1, count)) / max(1, count - 1)
        moving = new_variance > _STILL * wide(variance.detach())
        if count < 2 or not bool(moving.any()):
            continue
        mean.detach().copy_(torch.where(moving, pivot + total / count, pivot))
        variance.detach().copy_(torch.where(moving, new_variance, wide(variance.detach())))
        moved.append(norm.mean)
        if len(norm.nodes) > 1:  # some node behind the first use has run on the old ones
            stream = Stream(program, batches)
    return moved
