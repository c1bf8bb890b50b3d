"""Reconstruct: least-squares repair of the layers that read pruned inputs, without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ..compiler.errors import PlanError
from ..compiler.pass_class import Pass, PassResult
from .calibration.batches import calibration_batches
from .calibration.streams import measuring
from .reconstruction.repair import Repair
from .reconstruction.ridge import GROWTH

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation


@dataclasses.dataclass
class Reconstruct(Pass):
    """Give each layer the weights with which it best answers as in the original, one by one.

    In order of the graph, every linear layer, matrix product with a weight and convolution (1d, 2d,
    grouped) whose output differs from the original's gets W + delta and b + shift that minimise
    |original output - smaller output|² + lambda |delta|² over the calibration data, where the
    smaller model's input is that of the layers already repaired (error accumulation; Meng et al.,
    "OSSCAR", 2024). A layer keeps its weights where the change would not lower its error, and all
    do where the model's outputs would not come closer to the original's, on all batches and on
    those that were kept apart.

    What a layer may change depends on what the data say: `reconstruction/ridge.py` has the rule. On
    data of low rank, which are told in the report, a layer is left as it was cut. A
    layer of more than 4096 inputs is solved through 1024 directions of them, twice.

    Args:
        calibration: unlabelled batches; by default those the pipeline was given.
        ridge: lambda, as a share of the mean square of the layer's inputs; None: per layer the
            largest that does nearly as well as the best on a quarter of the batches, which the
            others are solved without.
        growth: the norm of a layer's weight becomes at most this many times that of the cut or the
            original one; the ridge is raised until it does.
        weights: False leaves all weights as they are and moves biases only (bias compensation, An
            et al., "FLAP", 2024).
        rows: at most so many rows (tokens, patches) of a layer are read, or `rows_per_input` times
            its inputs where that is more; chosen at random.
        rows_per_input: see `rows`. A layer with fewer distinct rows than inputs gets a new bias
            only.
        memory: bytes for what is held at once of all batches (batches beyond are left out). The
            moments of one layer take a gigabyte at most, and no more than this (a layer that needs
            more gets a new bias only).
        add_bias: give a bias to standard layers that have none. A layer whose batch norm follows
            uses the norm's running mean, with or without this.
        seed: of the choice of rows.
        progress: show a bar with the layers done and the time left, on terminals.

    Raises:
        PlanError: options out of range, or no calibration data.
    """

    calibration: Iterable[Any] | None = None
    ridge: float | None = None
    growth: float = GROWTH
    weights: bool = True
    rows: int = 16384
    rows_per_input: int = 16
    memory: int = 2**31
    add_bias: bool = True
    seed: int = 0
    progress: bool = True

    name: ClassVar[str] = "reconstruct"
    needs: ClassVar[tuple[str, ...]] = ("dense",)
    provides: ClassVar[tuple[str, ...]] = ("repaired",)

    def __post_init__(self) -> None:
        if self.ridge is not None and not self.ridge >= 0:
            raise PlanError(f"ridge={self.ridge!r} must be at least 0.")
        if not self.growth >= 1:
            raise PlanError(f"growth={self.growth!r} must be at least 1.")
        for option in ("rows", "rows_per_input", "memory"):
            if getattr(self, option) < 1:
                raise PlanError(f"{option}={getattr(self, option)!r} must be at least 1.")

    def run(self, state: Compilation) -> PassResult:
        if state.masks:
            raise PlanError(
                "Reconstruct would fill the zeros of SparsifyWeights: put it before that pass."
            )
        batches, left_out = calibration_batches(state, self.calibration, self.memory, self.name)
        with measuring():
            repair = Repair(state, batches, self)
            before, after = repair.run()
        layers = repair.outcomes
        changed = [n for n, outcome in layers.items() if outcome.changed]
        details = {
            "batches": len(batches),
            "batches left out": left_out,
            "output error": [before, after],
            "output error kept apart": repair.held_out,
            "layers": {name: outcome.to_json() for name, outcome in layers.items()},
            "biases added": repair.biases_added,
            "not treated": repair.reasons,
        }
        errors = "" if before is None else f", output error {before:.3g} -> {after:.3g}"
        summary = f"{len(changed)} of {len(layers)} layers repaired{errors}"
        if repair.biases_added:
            summary += f"; {len(repair.biases_added)} biases added"
        poor = repair.poor
        if poor is not None:
            state.notes.append(
                f"calibration data of rank {poor.rank:.0f} of {poor.possible} at {poor.layer}, by"
                " which they enter: layers were left as they were cut; give more varied data, or"
                " ridge= to repair them for such data only"
            )
            summary += "; data of low rank"
        if repair.undone:
            state.notes.append(
                "the least-squares repair was undone: the outputs did not come closer to the"
                " original's on all of the calibration data or on the part kept apart"
            )
            summary += "; all undone: the outputs would not come closer to the original's"
        if left_out:
            summary += f"; {left_out} of {left_out + len(batches)} batches left out"
        if repair.reasons:
            summary += f"; {len(repair.reasons)} contractions not treated"
        return PassResult(bool(changed), summary, details)
