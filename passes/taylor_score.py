"""Taylor scores: how far the outputs move, to first order, when an entry is masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from ..compiler.errors import PlanError
from ..compiler.inference.graph import Graph
from ..compiler.ir.program import output_values
from ..compiler.pass_class import Pass, PassResult
from ..compiler.verify.interpreter import ProgramInterpreter
from .calibration.batches import calibration_batches
from .calibration.finite import not_finite, refuse_rows
from .calibration.progress import shown
from .calibration.streams import measuring
from .calibration.tokens import TokenMasks
from .sensitivity.entry_sums import entry_sums
from .sensitivity.readings import find_readings

if TYPE_CHECKING:
    from ..compiler.compilation import Compilation

Places = dict[str, list[tuple[str, int]]]


@dataclasses.dataclass
class TaylorScore(Pass):
    """Score each entry by the squared derivative of the outputs by a mask on it; without labels.

    The derivative is sum(w * dz/dw) over the weights with which layers read the entry (Molchanov et
    al. 2019, eq. 8, for a group). With z the outputs and e standard normal, the mean of its square
    for z.e is the entry's diagonal of the Gauss-Newton matrix: a loss against the model's own
    outputs has no gradient, and one against labels hardly any once it is fitted. Scores are
    relative to the mean over all dimensions, so they compare. Sets `scores`.

    Args:
        calibration: unlabelled batches; by default those the pipeline was given.
        draws: of e, for each batch.
        own_gradients: instead take the gradients that the caller's own loss has left in the
            parameters' `grad`; no calibration data is read.
        memory, progress: as `SecondOrderScore` takes them.
        seed: of e.

    Raises:
        PlanError: no calibration data, or no gradients where they are the caller's.
    """

    calibration: Iterable[Any] | None = None
    draws: int = 4
    own_gradients: bool = False
    memory: int = 2**31
    seed: int = 0
    progress: bool = True

    name: ClassVar[str] = "taylor-score"
    provides: ClassVar[tuple[str, ...]] = ("scores",)
    forbids: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise PlanError(f"draws={self.draws!r} must be at least 1.")

    def run(self, state: Compilation) -> PassResult:
        graph = state.graph
        places = _read_places(graph)
        total = {n: torch.zeros(d.size, dtype=torch.float64) for n, d in graph.prunable.items()}
        details: dict[str, Any] = {}
        if self.own_gradients:
            _add(total, graph, places, _own_gradients(graph))
        else:
            batches, left_out = calibration_batches(state, self.calibration, self.memory, self.name)
            details = {"batches": len(batches), "batches left out": left_out}
            self._measure(total, graph, places, batches)
        mean = torch.cat(list(total.values())).mean() if total else torch.tensor(0.0)
        if not mean > 0:
            raise PlanError(
                "TaylorScore found no derivative: no output depends on a prunable dimension by a "
                "derivative other than zero; take another score."
            )
        state.scores = {name: score / mean for name, score in total.items()}
        return PassResult(False, f"derivatives of {len(total)} dimensions", details)

    def _measure(
        self,
        total: dict[str, Tensor],
        graph: Graph,
        places: Places,
        batches: Sequence[Sequence[Any]],
    ) -> None:
        masks = TokenMasks(graph.program, batches)
        node = next(n for n in graph.program.graph.nodes if n.op == "output")
        sources = output_values(node.args[0])
        names = {name for own in places.values() for name, _ in own}
        show = [(i, k) for i in range(len(batches)) for k in range(self.draws)]
        generator = torch.Generator().manual_seed(self.seed)
        for batch, _ in shown(show, self.name, self.progress):
            leaves = {name: graph.program.tensors[name].detach().requires_grad_() for name in names}
            runs = ProgramInterpreter(
                graph.program, tensor_hook=lambda name, x, leaves=leaves: leaves.get(name, x)
            )
            with measuring(), torch.enable_grad():
                flat = [x.clone() if isinstance(x, Tensor) else x for x in batches[batch]]
                outputs = output_values(runs.run(*flat, enable_io_processing=False))
                loss = _projected(outputs, sources, masks, batch, generator)
                if loss is None:
                    continue
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
            for name, gradient in gradients.items():
                refuse_rows(gradient, name, batch, "has for a derivative")
            _add(total, graph, places, gradients)


def _read_places(graph: Graph) -> Places:
    """Per dimension the weights (name, axis) with which layers read it; of one that is read
    otherwise, every parameter that carries it."""
    readings, _ = find_readings(graph)
    places: Places = {}
    for name, dimension in graph.prunable.items():
        read = {r.consumer.weight: 0 if r.consumer.flipped else 1 for r in readings.get(name, ())}
        places[name] = list(read.items()) or [
            (tensor, axis)
            for tensor, axis in dimension.members
            if isinstance(graph.program.tensors[tensor], nn.Parameter)
        ]
    return places


def _add(
    total: dict[str, Tensor], graph: Graph, places: Places, gradients: dict[str, Tensor]
) -> None:
    """Add the square of each entry's derivative."""
    for name, own in places.items():
        derivative = torch.zeros_like(total[name])
        for tensor, axis in own:
            if tensor in gradients:
                product = gradients[tensor].double() * graph.program.tensors[tensor].detach()
                others = [a for a in range(product.dim()) if a != axis]
                values = product.sum(others) if others else product
                derivative += entry_sums(graph, graph.prunable[name], tensor, axis, values)
        total[name] += derivative.square()


def _own_gradients(graph: Graph) -> dict[str, Tensor]:
    found = {
        name: tensor.grad
        for name, tensor in graph.program.tensors.items()
        if isinstance(tensor, nn.Parameter) and tensor.grad is not None
    }
    if not found:
        raise PlanError(
            "TaylorScore(own_gradients=True) found no gradients on the model's parameters: call "
            "backward() on your loss first, or leave own_gradients out."
        )
    for name, gradient in found.items():
        if not bool(gradient.isfinite().all()):
            raise not_finite(f"the gradient of '{name}'")
    return found


def _projected(
    outputs: Sequence[Any],
    sources: Sequence[Any],
    masks: TokenMasks,
    batch: int,
    generator: torch.Generator,
) -> Tensor | None:
    """The sum of outputs times noise, each by its own scale; padding does not count."""
    total: Tensor | None = None
    for source, output in zip(sources, outputs, strict=True):
        if not (
            isinstance(output, Tensor) and output.requires_grad and isinstance(source, fx.Node)
        ):
            continue
        noise = torch.randn(output.shape, generator=generator).to(output)
        tokens = masks.rows(source, batch, output.shape[:2]) if output.dim() > 2 else None
        if tokens is not None:
            own = tokens.to(noise.device).reshape(output.shape[:2])
            noise = noise * own.reshape(*own.shape, *[1] * (output.dim() - 2))
        finite = output.isfinite()
        if bool(output.isnan().any()):
            refuse_rows(output.detach(), source.name, batch, "gives")
        output = torch.where(finite, output, 0.0)
        scale = output.detach().double().square().mean().sqrt()
        if scale > 0:
            part = (output * noise).sum() / scale.to(output)
            total = part if total is None else total + part
    return total
