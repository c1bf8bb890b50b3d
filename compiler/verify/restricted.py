"""The reference for norm-coupled dimensions: the original graph with statistics over kept entries.

Every value's removed entries are zero, and ops whose result depends on how many entries there are
(means, norms, softmax, extrema) are computed over the kept ones by their formula. Nothing here
uses the rewritten integers, so agreement with the dense program checks those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..inference.graph import Graph
from ..inference.rule import Numbers, bound_arguments, op_name
from ..ir.memory import mutates
from ..ir.terms import Term, variables
from ..ir.views import fitted
from ..rewrite.slicing import Kept, term_indices, zero_tensor
from .interpreter import ProgramInterpreter

Keep = list[Tensor | None]
Formula = Callable[[Tensor, Keep, dict[str, Any]], Any]
FORMULAS: dict[str, Formula] = {}
EXACT_WITH_ZEROS = frozenset(
    (
        "aten::sum aten::linalg_vector_norm aten::norm aten::frobenius_norm aten::cdist "
        "aten::any aten::_weight_norm aten::_weight_norm_interface aten::count_nonzero "
        "aten::nansum"
    ).split()
)


def formula(*ops: str) -> Callable[[Formula], Formula]:
    """Register the masked formula of a statistic op."""

    def register(function: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(ops, function))
        return function

    return register


def supported(node: fx.Node) -> bool:
    """Whether a statistic node has a reference over kept entries."""
    return op_name(node.target) in FORMULAS or op_name(node.target) in EXACT_WITH_ZEROS


class RestrictedInterpreter(ProgramInterpreter):
    """Runs the original program restricted to the kept entries of every dimension."""

    def __init__(self, graph: Graph, kept: Kept, dtype: torch.dtype | None = None) -> None:
        terms = graph.inference.tensors
        super().__init__(
            graph.program,
            dtype=dtype,
            tensor_hook=lambda name, tensor: zero_tensor(tensor, terms[name], kept),
        )
        self.graph_terms = graph.inference.terms
        self.kept = kept
        self.statistics = {s.node for s in graph.inference.statistics}
        numbers = graph.inference.numbers.items()
        self.running = {n for n, x in numbers if isinstance(x, Numbers) and x.what == "offsets"}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        result = self._statistic(n) if n in self.statistics else None
        if result is None:
            result = super().run_node(n)
        elif self.node_hook is not None:
            result = self.node_hook(n, result)
        if n in self.running:  # a removed entry adds nothing to a running sum, which goes on
            return result
        inputs = [self.env[x] for x in n.all_input_nodes if x.op != "get_attr"]
        if mutates(n) and isinstance(result, Tensor):
            return self._clear_in_place(self.graph_terms.get(n), result)
        return self._clear(self.graph_terms.get(n), result, inputs)

    def _statistic(self, n: fx.Node) -> Any:
        function = FORMULAS.get(op_name(n.target))
        arguments = bound_arguments(n)
        source = arguments.get("key", n.args[0])  # the statistic of attention runs over its keys
        if function is None or not isinstance(source, fx.Node):
            return None
        given: Any = map_arg(arguments, self.value_of)
        keep = self._keep(self.graph_terms.get(source), self.value_of(source))
        if all(k is None for k in keep):
            return None
        return function(given.get("x", given.get("query")), keep, given)

    def _keep(self, terms: Any, value: Any) -> Keep:
        """The kept entries of each axis of a value, at its own size (capture's may differ)."""
        if not isinstance(terms, list):
            return []
        return [self._mask(term, size) for term, size in zip(terms, value.shape, strict=True)]

    def _mask(self, term: Term, size: int) -> Tensor | None:
        if not any(v in self.kept for v in variables(term)):
            return None
        mask = torch.zeros(size, dtype=torch.bool)
        mask[term_indices(fitted(term, size), self.kept)] = True
        return mask

    def _clear(self, terms: Any, value: Any, inputs: Sequence[Any]) -> Any:
        """Zero the removed entries; a view of an input is left alone (its base is cleared)."""
        if isinstance(terms, tuple) and isinstance(value, (tuple, list)):
            return type(value)(self._clear(t, v, inputs) for t, v in zip(terms, value, strict=True))
        if not isinstance(value, Tensor) or not isinstance(terms, list):
            return value
        removed = list(self._removed(terms, value))
        if not removed:
            return value
        storage = value.untyped_storage().data_ptr()
        if any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == storage for x in inputs):
            return value
        for axis, gone in removed:
            value = value.index_fill(axis, gone, 0)
        return value

    def _clear_in_place(self, terms: Any, value: Tensor) -> Tensor:
        for axis, gone in self._removed(terms, value):
            value.index_fill_(axis, gone, 0)
        return value

    def _removed(self, terms: Any, value: Tensor) -> Iterator[tuple[int, Tensor]]:
        for axis, keep in enumerate(self._keep(terms, value)):
            if keep is not None:
                yield axis, (~keep).nonzero().reshape(-1).to(value.device)


def _shaped(x: Tensor, keep: Keep, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(weights of 0/1 that broadcast against x, the number of entries kept over `axes`)."""
    weight = torch.ones((), dtype=x.dtype, device=x.device)
    count = torch.ones((), dtype=x.dtype, device=x.device)
    for axis in axes:
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        own = keep[axis]
        values = torch.ones(shape, dtype=x.dtype, device=x.device)
        if own is not None:
            values = own.to(x).reshape(shape)
        weight = weight * values
        count = count * values.sum()
    return weight, count


def _axes(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(x.dim()))
    return [d % x.dim() for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _mean(x: Tensor, keep: Keep, axes: Sequence[int]) -> Tensor:
    weight, count = _shaped(x, keep, axes)
    return (x * weight).sum(dim=list(axes), keepdim=True) / count.clamp_min(1)


def _variance(x: Tensor, keep: Keep, axes: Sequence[int], correction: float = 0) -> Tensor:
    weight, count = _shaped(x, keep, axes)
    centred = (x - _mean(x, keep, axes)) * weight
    return centred.square().sum(dim=list(axes), keepdim=True) / (count - correction).clamp_min(1e-9)


def _squeeze(x: Tensor, axes: Sequence[int], keepdim: Any) -> Tensor:
    return x if keepdim else x.squeeze(tuple(axes))


@formula("aten::mean")
def mean(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given.get("dim"))
    return _squeeze(_mean(x, keep, axes), axes, given.get("keepdim"))


def _correction(given: dict[str, Any]) -> float:
    if given.get("correction") is not None:
        return float(given["correction"])
    return 0.0 if given.get("unbiased") is False else 1.0


@formula("aten::var")
def var(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given.get("dim"))
    return _squeeze(_variance(x, keep, axes, _correction(given)), axes, given.get("keepdim"))


@formula("aten::std")
def std(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    return var(x, keep, given).sqrt()


@formula("aten::var_mean")
def var_mean(x: Tensor, keep: Keep, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return var(x, keep, given), mean(x, keep, given)


@formula("aten::std_mean")
def std_mean(x: Tensor, keep: Keep, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return std(x, keep, given), mean(x, keep, given)


def _where_kept(x: Tensor, keep: Keep, axes: Sequence[int], otherwise: float) -> Tensor:
    weight, _ = _shaped(x, keep, axes)
    return torch.where(weight.bool(), x, torch.full((), otherwise, dtype=x.dtype, device=x.device))


@formula("aten::softmax", "aten::_softmax")
def softmax(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    return log_softmax(x, keep, given).exp()


@formula("aten::log_softmax", "aten::_log_softmax")
def log_softmax(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given["dim"])
    kept = _where_kept(x, keep, axes, -torch.inf)
    if isinstance(given.get("dtype"), torch.dtype):
        kept = kept.to(given["dtype"])
    return kept.log_softmax(axes[0])


@formula("aten::scaled_dot_product_attention")
def attention(q: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    """Over kept keys, with the scale of the original width; `keep` is of the key's axes."""
    k, v = given["key"], given["value"]
    if given.get("enable_gqa"):
        repeat = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(repeat, -3), v.repeat_interleave(repeat, -3)
    scale = given["scale"] if given.get("scale") is not None else q.shape[-1] ** -0.5
    scores = (q @ k.transpose(-2, -1)) * scale
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    if keep[-2] is not None:
        scores = scores.masked_fill(~keep[-2].to(q.device), -torch.inf)
    return scores.softmax(-1) @ v


@formula("aten::logsumexp")
def logsumexp(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given["dim"])
    return _where_kept(x, keep, axes, -torch.inf).logsumexp(axes, bool(given.get("keepdim")))


@formula("aten::amax")
def amax(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given.get("dim"))
    return _where_kept(x, keep, axes, -torch.inf).amax(axes, bool(given.get("keepdim")))


@formula("aten::amin")
def amin(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given.get("dim"))
    return _where_kept(x, keep, axes, torch.inf).amin(axes, bool(given.get("keepdim")))


def _extremum(x: Tensor, keep: Keep, given: dict[str, Any], sign: int) -> Any:
    axes = _axes(x, given.get("dim"))
    kept = _where_kept(x, keep, axes, -sign * torch.inf)
    choose = torch.max if sign > 0 else torch.min
    if given.get("dim") is None:
        return choose(kept)
    return choose(kept, axes[0], keepdim=bool(given.get("keepdim")))


@formula("aten::max")
def maximum(x: Tensor, keep: Keep, given: dict[str, Any]) -> Any:
    return _extremum(x, keep, given, 1)


@formula("aten::min")
def minimum(x: Tensor, keep: Keep, given: dict[str, Any]) -> Any:
    return _extremum(x, keep, given, -1)


@formula("aten::topk")
def topk(x: Tensor, keep: Keep, given: dict[str, Any]) -> Any:
    axes = _axes(x, given["dim"])
    kept = _where_kept(x, keep, axes, -torch.inf if given["largest"] else torch.inf)
    return kept.topk(given["k"], axes[0], given["largest"], given["sorted"])


@formula("aten::argmax")
def argmax(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given["dim"])
    return _where_kept(x, keep, axes, -torch.inf).argmax(axes[0], given["keepdim"])


@formula("aten::argmin")
def argmin(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given["dim"])
    return _where_kept(x, keep, axes, torch.inf).argmin(axes[0], given["keepdim"])


@formula("aten::aminmax")
def aminmax(x: Tensor, keep: Keep, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return amin(x, keep, given), amax(x, keep, given)


@formula("aten::prod")
def prod(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = _axes(x, given.get("dim"))
    kept = _where_kept(x, keep, axes, 1.0)
    if given.get("dim") is None:
        return kept.prod()
    return kept.prod(axes[0], keepdim=bool(given.get("keepdim")))


def _affine(x: Tensor, shape: Sequence[int], given: dict[str, Any]) -> Tensor:
    if given.get("weight") is not None:
        x = x * given["weight"].reshape(shape)
    if given.get("bias") is not None:
        x = x + given["bias"].reshape(shape)
    return x


@formula("aten::layer_norm")
def layer_norm(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = list(range(x.dim() - len(given["normalized_shape"]), x.dim()))
    centred = x - _mean(x, keep, axes)
    scaled = centred * (_variance(x, keep, axes) + given["eps"]).rsqrt()
    return _affine(scaled, x.shape[axes[0] :], given)


@formula("aten::rms_norm")
def rms_norm(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    axes = list(range(x.dim() - len(given["normalized_shape"]), x.dim()))
    eps = given["eps"] if given["eps"] is not None else torch.finfo(x.dtype).eps
    scaled = x * (_mean(x.square(), keep, axes) + eps).rsqrt()
    return _affine(scaled, x.shape[axes[0] :], given)


@formula("aten::group_norm")
def group_norm(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    groups = given["num_groups"]
    weight, _ = _shaped(x, keep, range(1, x.dim()))
    weight = weight.expand(1, *x.shape[1:]).reshape(1, groups, -1, *x.shape[2:])
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    axes = list(range(2, grouped.dim()))
    count = weight.sum(dim=axes, keepdim=True).clamp_min(1)
    centre = (grouped * weight).sum(dim=axes, keepdim=True) / count
    spread = ((grouped - centre) * weight).square().sum(dim=axes, keepdim=True) / count
    scaled = ((grouped - centre) * (spread + given["eps"]).rsqrt()).reshape(x.shape)
    return _affine(scaled, [1, -1, *([1] * (x.dim() - 2))], given)


@formula("aten::batch_norm", "aten::instance_norm")
def batch_norm(x: Tensor, keep: Keep, given: dict[str, Any]) -> Tensor:
    instance = "use_input_stats" in given
    axes = [a for a in range(x.dim()) if a != 1 and not (instance and a == 0)]
    scaled = (x - _mean(x, keep, axes)) * (_variance(x, keep, axes) + given["eps"]).rsqrt()
    return _affine(scaled, [1, -1, *([1] * (x.dim() - 2))], given)
