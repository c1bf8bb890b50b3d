"""Feature distillation without projections: values inside both models that still have one shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...compiler.emit.leaf_modules import innermost
from ...compiler.ir.terms import Term, variables
from .losses import embedding_loss
from .outputs import classes_last, position_mask

if TYPE_CHECKING:
    from ...compiler.compilation import Compilation

Values = dict[str, list[Tensor]]


def matched_paths(state: Compilation) -> list[str]:
    """The modules whose outputs are whole in the smaller model, where something they read is not.

    Those are the layers that sum over a cut dimension, and the norms over what they add to: in both
    models the same quantity, index for index, so nothing has to be projected. A pruned node is
    itself in both graphs, so the pairing is found, not configured.
    """
    if state.dense is None:
        return []
    inference, kept = state.graph.inference, state.plan.combined()
    left = {node.name for node in state.dense.program.graph.nodes}
    model = state.model
    paths: dict[str, None] = {}

    def cut(terms: Sequence[Term]) -> bool:
        return any(v in kept for term in terms for v in variables(term))

    facts = [(s.node, s.weight is not None and cut([s.term])) for s in inference.sinks]
    facts += [(s.node, not cut([s.term])) for s in inference.statistics]
    order = {node: i for i, node in enumerate(state.graph.program.graph.nodes)}
    for node, wanted in sorted(facts, key=lambda fact: order[fact[0]]):
        path = innermost(node)
        whole = not cut(inference.terms.get(node, ()))
        if wanted and whole and path and node.name in left and _has(model, path):
            paths[path] = None
    return list(paths)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


class Features:
    """What the modules at `paths` return, call by call, while hooks are attached."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.values: Values = {}
        self.collecting = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Collect nothing inside."""
        self.collecting = False
        try:
            yield
        finally:
            self.collecting = True

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Collect from `model` inside."""
        hooks = [
            model.get_submodule(path).register_forward_hook(partial(self._keep, path))
            for path in self.paths
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        if not self.collecting:
            return
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1:
            self.values.setdefault(path, []).append(output)

    def take(self) -> Values:
        """What was collected since the last time."""
        values, self.values = self.values, {}
        return values


def feature_loss(student: Values, teacher: Values, arguments: Mapping[str, Any]) -> Tensor | None:
    """The mean over all pairs of |s - t|² / |t|², padding left out; None without a pair.

    Pairs are values of one module and call that have the same shape in both models; those that lead
    to no trainable parameter (frozen layers, reentrant checkpointing) do not count. Source: global
    AdaPrune, Frantar and Alistarh, "SPDY" (2022).
    """
    losses: list[Tensor] = []
    for path, answers in teacher.items():
        for own, answer in zip(student.get(path, ()), answers, strict=False):
            if own.shape == answer.shape and own.requires_grad:
                own, answer = classes_last(own), classes_last(answer.to(own.device))
                mask = position_mask(arguments, own, decoder="decoder" in path)
                losses.append(embedding_loss(own, answer, "mse", mask=mask))
    return torch.stack(losses).mean() if losses else None
