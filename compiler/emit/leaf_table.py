"""The standard leaf layers of torch.nn: which op each one is, and how it is made anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ArtifactError

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LeafKind:
    """One class. `op`: the ATen op its forward is. `tensors`: those op arguments that are its own
    tensors, by the same name. `agree`: op arguments that must equal its attribute of that name.
    `options`: attributes passed to the constructor as they are. `sizes`: constructor arguments
    read off the tensors and the op's arguments; None where they do not tell."""

    cls: type[nn.Module]
    op: str
    tensors: tuple[str, ...] = ()
    agree: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    sizes: Callable[[Values], dict[str, Any] | None] = lambda given: {}


def _linear(given: Values) -> dict[str, Any]:
    rows, columns = given["weight"].shape
    return {"in_features": columns, "out_features": rows, "bias": given["bias"] is not None}


def _convolution(given: Values) -> dict[str, Any]:
    out, inner, *kernel = given["weight"].shape
    return {
        "in_channels": inner * given["groups"],
        "out_channels": out,
        "groups": given["groups"],
        "kernel_size": tuple(kernel),
        "bias": given["bias"] is not None,
    }


def _transposed(given: Values) -> dict[str, Any]:
    channels, inner, *kernel = given["weight"].shape
    return {
        "in_channels": channels,
        "out_channels": inner * given["groups"],
        "groups": given["groups"],
        "kernel_size": tuple(kernel),
        "bias": given["bias"] is not None,
    }


def _batch_norm(given: Values) -> dict[str, Any] | None:
    known = given["weight"] if given["weight"] is not None else given["running_mean"]
    if known is None:
        return None
    return {
        "num_features": known.shape[0],
        "affine": given["weight"] is not None,
        "track_running_stats": given["running_mean"] is not None,
    }


def _layer_norm(given: Values) -> dict[str, Any]:
    affine = given["weight"] is not None
    return {
        "normalized_shape": tuple(given["normalized_shape"]),
        "elementwise_affine": affine,
        "bias": affine and given["bias"] is not None,
    }


def _rms_norm(given: Values) -> dict[str, Any]:
    shape, affine = tuple(given["normalized_shape"]), given["weight"] is not None
    return {"normalized_shape": shape, "elementwise_affine": affine}


def _group_norm(given: Values) -> dict[str, Any] | None:
    if given["weight"] is None:
        return None
    return {"num_groups": given["num_groups"], "num_channels": given["weight"].shape[0]}


def _embedding(given: Values) -> dict[str, Any]:
    rows, columns = given["weight"].shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _prelu(given: Values) -> dict[str, Any]:
    return {"num_parameters": given["weight"].numel()}


_AFFINE = ("weight", "bias")
_STATISTICS = (*_AFFINE, "running_mean", "running_var")
_STEPS = ("stride", "padding", "dilation")
_TRANSPOSED_STEPS = (*_STEPS, "output_padding")

_KINDS = (
    LeafKind(nn.Linear, "linear", _AFFINE, sizes=_linear),
    *(
        LeafKind(cls, f"conv{i}d", _AFFINE, _STEPS, (*_STEPS, "padding_mode"), _convolution)
        for i, cls in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)
    ),
    *(
        LeafKind(
            cls, f"conv_transpose{i}d", _AFFINE, _TRANSPOSED_STEPS, _TRANSPOSED_STEPS, _transposed
        )
        for i, cls in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)
    ),
    *(
        LeafKind(cls, "batch_norm", _STATISTICS, ("eps",), ("eps", "momentum"), _batch_norm)
        for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    ),
    *(
        LeafKind(cls, "instance_norm", _STATISTICS, ("eps",), ("eps", "momentum"), _batch_norm)
        for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    ),
    LeafKind(nn.LayerNorm, "layer_norm", _AFFINE, ("eps",), ("eps",), _layer_norm),
    LeafKind(nn.RMSNorm, "rms_norm", ("weight",), ("eps",), ("eps",), _rms_norm),
    LeafKind(nn.GroupNorm, "group_norm", _AFFINE, ("eps",), ("eps",), _group_norm),
    LeafKind(
        nn.Embedding,
        "embedding",
        ("weight",),
        ("padding_idx", "scale_grad_by_freq", "sparse"),
        ("padding_idx", "scale_grad_by_freq", "sparse", "max_norm"),
        _embedding,
    ),
    LeafKind(nn.PReLU, "prelu", ("weight",), sizes=_prelu),
    LeafKind(nn.Dropout, "dropout", (), ("p",), ("p",)),
    *(
        LeafKind(cls, "feature_dropout", (), ("p",), ("p",))
        for cls in (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    ),
    LeafKind(nn.AlphaDropout, "alpha_dropout", (), ("p",), ("p",)),
    *(
        LeafKind(cls, op)
        for cls, op in (
            (nn.ReLU, "relu"),
            (nn.SiLU, "silu"),
            (nn.Mish, "mish"),
            (nn.Sigmoid, "sigmoid"),
            (nn.Tanh, "tanh"),
            (nn.Hardswish, "hardswish"),
            (nn.Hardsigmoid, "hardsigmoid"),
        )
    ),
    LeafKind(nn.GELU, "gelu", (), ("approximate",), ("approximate",)),
    LeafKind(nn.ELU, "elu", (), ("alpha",), ("alpha",)),
    LeafKind(nn.LeakyReLU, "leaky_relu", (), ("negative_slope",), ("negative_slope",)),
    LeafKind(nn.Softmax, "softmax", (), ("dim",), ("dim",)),
)
LEAF_KINDS: dict[str, LeafKind] = {kind.cls.__name__: kind for kind in _KINDS}


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """A standard leaf layer of a model, as data. `class_name`: its class in torch.nn. `module`: the
    first name of the module, which it shares with no other. `attributes` are JSON values."""

    class_name: str
    attributes: dict[str, Any]
    module: str
    training: bool = False

    @property
    def kind(self) -> LeafKind:
        """The row of the table. Raises ArtifactError for a class that is not in it."""
        kind = LEAF_KINDS.get(self.class_name)
        if kind is None:
            raise ArtifactError(
                f"The artifact names the layer class {self.class_name!r}, which is none of the"
                " standard layers: it is damaged, or was written by a newer prunec."
            )
        return kind


def describe(module: nn.Module, name: str) -> LeafSpec | None:
    """The spec of a module whose forward is a standard layer's; None for any other."""
    kind = next(
        (
            LEAF_KINDS[c.__name__]
            for c in type(module).__mro__
            if c.__module__.startswith("torch.nn.")
            and getattr(nn, c.__name__, None) is c
            and c.__name__ in LEAF_KINDS
        ),
        None,
    )
    if kind is None or type(module).forward is not kind.cls.forward:
        return None
    attributes = {option: _plain(getattr(module, option)) for option in kind.options}
    counter = getattr(module, "num_batches_tracked", None)
    if isinstance(counter, Tensor) and counter.device.type != "meta":
        attributes["num_batches_tracked"] = int(counter)
    return LeafSpec(kind.cls.__name__, attributes, name, module.training)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
