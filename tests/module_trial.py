"""A model captured, cut and carried out by the module back end, with what tests ask of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from prunec.compiler.capture.capture import capture
from prunec.compiler.emit.leaf_modules import emit_graph_module, leaf_specs
from prunec.compiler.emit.module_backend import ModuleResult, build_module
from prunec.compiler.emit.replay import replay
from prunec.compiler.inference.graph import Graph
from prunec.compiler.ir.program import Program
from prunec.compiler.rewrite.folds import Fold
from prunec.compiler.rewrite.rewrite import rewrite
from prunec.compiler.rewrite.slicing import Kept, term_indices


def only_tensor(output: Any) -> Tensor:
    return next(t for t in pytree.tree_leaves(output) if isinstance(t, Tensor))


class Trial:
    """A model captured, cut and carried out by the module back end."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple,
        kinds: Collection[str] = (),
        outputs: str | None = None,
        folds: Callable[[Graph], list[Fold]] = lambda g: [],
        keep: Callable[[int], Tensor] = lambda size: torch.arange(size)[1::2],
    ) -> None:
        torch.manual_seed(0)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "running" not in name:
                tensor.add_(0.3 * torch.randn_like(tensor))  # nothing is near zero or one
        self.model = model.eval()
        self.inputs = inputs
        self.before = {name: t.clone() for name, t in model.state_dict().items()}
        self.graph = capture(model, inputs, outputs=outputs)
        self.kept: Kept = self.choose(kinds, keep)
        self.dense: Program = rewrite(self.graph, self.kept, folds(self.graph))
        self.reference = emit_graph_module(self.dense, leaf_specs(model, self.graph.program))
        self.trials = 0
        self.result: ModuleResult = build_module(
            self.graph, self.dense, self.kept, self.compare, 1e-5
        )

    def choose(self, kinds: Collection[str], keep: Callable[[int], Tensor]) -> Kept:
        kept, done = {}, set()
        for d in self.graph.prunable.values():
            if (not kinds or d.kind in kinds) and done.isdisjoint(d.partners):
                done.add(d.name)
                kept[d.var] = keep(d.size)
        assert kept
        return kept

    def compare(self, module: nn.Module) -> float:
        self.trials += 1
        with torch.no_grad():
            expected = only_tensor(self.reference(*self.inputs))
            found = only_tensor(module(*self.inputs))
        return float((found - expected).norm() / expected.norm())

    @property
    def module(self) -> Any:
        module = self.result.module
        assert module is not None, self.result.reason
        assert type(module) is type(self.model)
        assert self.compare(module) < 1e-5
        assert sum(p.numel() for p in module.parameters()) < sum(
            p.numel() for p in self.model.parameters()
        )
        return module

    def slices(self) -> dict[str, dict[int, Tensor]]:
        terms = self.graph.inference.tensors
        return {
            known: {i: term_indices(t, self.kept) for i, t in enumerate(terms[name])}
            for name in terms
            for known in (name, *self.graph.program.aliases.get(name, ()))
        }

    def check_original(self) -> None:
        after = self.model.state_dict()
        assert all(torch.equal(after[name], t) for name, t in self.before.items())

    def check_replay(self) -> None:
        """A fresh model, cut from plain data that went through JSON, is the same model."""
        attributes = json.loads(json.dumps(self.result.attributes))
        shapes = {name: list(t.shape) for name, t in self.model.state_dict().items()}
        scales = self.result.scales
        small = replay(self.model, self.slices(), attributes, {}, shapes, scales)
        assert self.compare(small) < 1e-5
        assert [n for n, _ in small.named_parameters()] == [
            n for n, _ in self.module.named_parameters()
        ]
        self.check_original()
