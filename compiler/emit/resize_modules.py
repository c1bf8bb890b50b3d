"""Standard layers state their sizes as attributes: what those are once their tensors are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program
from .leaf_modules import innermost

Attributes = dict[str, Any]
Changes = dict[str, dict[str, list[Any]]]


def _linear(m: Any) -> Attributes:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _bilinear(m: Any) -> Attributes:
    out, first, second = m.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _convolution(m: Any) -> Attributes:
    first, second = m.weight.shape[:2]
    if m.transposed:
        return {"in_channels": first, "out_channels": second * m.groups}
    return {"in_channels": second * m.groups, "out_channels": first}


def _features(m: Any) -> Attributes:
    known = m.weight if m.weight is not None else m.running_mean
    return {} if known is None else {"num_features": known.shape[0]}


def _normalized_shape(m: Any) -> Attributes:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


def _group_norm(m: Any) -> Attributes:
    return {} if m.weight is None else {"num_channels": m.weight.shape[0]}


def _embedding(m: Any) -> Attributes:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


def _recurrent(m: Any) -> Attributes:
    return {"input_size": m.weight_ih_l0.shape[1], "hidden_size": m.weight_hh_l0.shape[1]}


def _multihead(m: Any) -> Attributes:
    packed = m.in_proj_weight is not None
    width = (m.in_proj_weight if packed else m.q_proj_weight).shape[1]  # what it reads
    return {
        "embed_dim": width,
        "kdim": width if packed else m.k_proj_weight.shape[1],
        "vdim": width if packed else m.v_proj_weight.shape[1],
    }


def _transformers_conv1d(m: Any) -> Attributes:
    return {"nx": m.weight.shape[0], "nf": m.weight.shape[1]}


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], Attributes]], ...] = (
    ((nn.Linear,), _linear),
    ((nn.Bilinear,), _bilinear),
    ((nn.modules.conv._ConvNd,), _convolution),
    ((nn.modules.batchnorm._NormBase,), _features),
    ((nn.LayerNorm, nn.RMSNorm), _normalized_shape),
    ((nn.GroupNorm,), _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.RNNBase,), _recurrent),
    ((nn.MultiheadAttention,), _multihead),
    ((nn.PReLU,), lambda m: {"num_parameters": m.weight.numel()}),
)
_ARGUMENTS = ("groups", "num_groups", "normalized_shape")  # what only the op's arguments tell


def _rule(module: nn.Module) -> Callable[[Any], Attributes] | None:
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _transformers_conv1d
    return next((rule for classes, rule in _RULES if isinstance(module, classes)), None)


def is_standard(module: nn.Module) -> bool:
    """Whether the sizes of a module are all known from its tensors and its op's arguments: not an
    nn.MultiheadAttention's number of heads, not the channels of a norm without weights."""
    rule = _rule(module)
    if rule is None or isinstance(module, nn.MultiheadAttention):
        return False
    return bool(rule(module)) or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def settled(module: nn.Module) -> set[str]:
    """The attributes that `resize_standard` has set."""
    rule = _rule(module)
    return set() if rule is None else {*rule(module), *_ARGUMENTS}


def resize_standard(module: nn.Module, *programs: Program) -> Changes:
    """Set the size attributes of every standard layer (transformers' Conv1D is one) of a module
    that holds the tensors of dense programs, the first one's arguments before the others'; returns
    {path: {attribute: [old, new]}}."""
    by_path = {p: given for dense in reversed(programs) for p, given in _node_arguments(dense)}
    arguments = {  # a node may have run under another name of a shared module
        id(layer): by_path[path]
        for path, layer in module.named_modules(remove_duplicate=False)
        if path in by_path
    }
    changes: Changes = {}
    for path, layer in module.named_modules():
        rule = _rule(layer)
        if rule is None:
            continue
        before = dict(vars(layer))
        for name, value in arguments.get(id(layer), {}).items():
            _set(layer, name, value)
        for name, value in rule(layer).items():
            _set(layer, name, value)
        changed = {
            name: [plain(before[name]), plain(value)]
            for name, value in vars(layer).items()
            if name in before and before[name] is not value and before[name] != value
        }
        if changed:
            changes[path] = changed
    return changes


def disagreement(module: nn.Module, names: Iterable[str]) -> str | None:
    """The first of these attributes of a standard layer that its tensors' shapes contradict."""
    rule = _rule(module)
    sizes = {} if rule is None else rule(module)
    return next(
        (n for n in names if n in sizes and plain(getattr(module, n)) != plain(sizes[n])), None
    )


def _set(layer: nn.Module, name: str, value: Any) -> None:
    old = getattr(layer, name, None)
    if old is not None:
        setattr(layer, name, as_type_of(old, value))


def _node_arguments(dense: Program) -> Iterable[tuple[str, Attributes]]:
    found: dict[str, Attributes] = {}
    for node in dense.graph.nodes:
        name = op_name(node.target)
        if node.op != "call_function" or not name.startswith("aten::"):
            continue
        if "conv" in name or name.endswith("_norm"):
            given = bound_arguments(node)
            for key in _ARGUMENTS:
                value = given.get(key)
                if isinstance(value, (list, tuple)):
                    value = tuple(value)
                if value is not None:
                    found.setdefault(innermost(node), {})[key] = value
    return found.items()


def plain(value: Any) -> Any:
    """An attribute's value as JSON would hold it."""
    return list(value) if isinstance(value, (list, tuple)) else value


def as_type_of(old: Any, new: Any) -> Any:
    """A plain value in the container type of the value it replaces."""
    return type(old)(new) if isinstance(old, (list, tuple)) else new
