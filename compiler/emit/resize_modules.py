"""Standard layers state their sizes as attributes: what those are once their tensors are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Attributes = dict[str, Any]


def _linear(m: Any) -> Attributes:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _bilinear(m: Any) -> Attributes:
    out, first, second = m.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _convolution(m: Any) -> Attributes:
    """Groups keep their number, but for a depthwise layer; the graph's own number replaces it."""
    first, second = m.weight.shape[:2]
    if m.transposed:
        groups = first if m.groups == m.in_channels else m.groups
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    groups = first if m.groups == m.out_channels else m.groups
    if m.groups == m.in_channels != m.out_channels:
        groups = first * m.in_channels // m.out_channels
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


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
    width = m.out_proj.weight.shape[0]
    packed = m.in_proj_weight is not None
    return {
        "embed_dim": width,
        "kdim": width if packed else m.k_proj_weight.shape[1],
        "vdim": width if packed else m.v_proj_weight.shape[1],
        "head_dim": width // m.num_heads,
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


def standard_sizes(module: nn.Module) -> Attributes | None:
    """The size attributes a standard layer should have, read off its tensors; None for a module
    that is no standard layer. transformers' Conv1D counts as one."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _transformers_conv1d(module)
    for classes, rule in _RULES:
        if isinstance(module, classes):
            return rule(module)
    return None


def resize_standard(
    module: nn.Module, groups: dict[str, int], name: Callable[[Tensor], str | None]
) -> dict[str, dict[str, list[Any]]]:
    """Set the size attributes of every standard layer; returns {path: {attribute: [old, new]}}.

    `groups`: the groups of the convolution or group norm that uses a tensor, by the tensor's name,
    where they changed; `name` names a tensor.
    """
    changes: dict[str, dict[str, list[Any]]] = {}
    for path, layer in module.named_modules():
        sizes = standard_sizes(layer)
        if sizes is None:
            continue
        ...
    return changes
