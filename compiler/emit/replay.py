"""Plain data onto a fresh model: tensors cut, attributes set; the given model is never changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..capture.copies import computed
from ..capture.program import identity
from ..errors import PlanError
from .resize_modules import Changes, as_type_of, disagreement, plain
from .thin_modules import Thinning

_GRAPH_ONLY = "prunec_"  # tensors the rewrite put beside nodes: the module held without them


def replay(
    model: nn.Module,
    slices: Mapping[str, Mapping[int, Tensor]],
    attributes: Changes,
    new_tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Any],
    scales: Mapping[str, Tensor] | None = None,
    thinning: Thinning | None = None,
) -> nn.Module:
    """A smaller copy of a model of the original shapes.

    `slices`: kept indices per axis of each tensor that is cut (a tied one is cut once, under any
    of its names). `attributes`: as `ModuleResult.attributes`. `new_tensors`: tensors that replace
    the cut ones, or that are new (a bias where there was none). `shapes`: the original shapes of
    the tensors that are cut. `scales`: what cut tensors are then multiplied by. `thinning`: the
    modules that leave it in the end; until then names are the original's.

    Raises PlanError when the model is another one, and where a standard layer would get a size that
    its tensors do not have.
    """
    known = tensors_by_name(model)
    for name in slices:
        if name not in known:
            raise PlanError(f"the plan cuts '{name}', which {type(model).__name__} does not have.")
        shape = list(known[name].shape)
        if shape != list(shapes.get(name, shape)):
            raise PlanError(
                f"the plan expects '{name}' of shape {list(shapes[name])}, the model has {shape}; "
                "apply it to a model of the original shapes."
            )
    made: dict[tuple[Any, ...], Tensor] = {}
    for name, axes in slices.items():
        key = identity(known[name])
        if key not in made:
            made[key] = _cut(known[name], axes)
    for name, factor in (scales or {}).items():
        key = identity(known[name])
        made[key] = scaled(made.get(key, known[name]), factor)
    for name, tensor in new_tensors.items():
        if name in known:
            made[identity(known[name])] = like(known[name], tensor)
    small = copy_with(
        model, {name: made[identity(t)] for name, t in known.items() if identity(t) in made}
    )
    for name, tensor in new_tensors.items():
        if name in known or name.startswith(_GRAPH_ONLY):
            continue
        weight = _attribute(small, f"{name.rpartition('.')[0]}.weight")
        own = like(weight, tensor) if isinstance(weight, Tensor) else tensor.clone()
        if not add_tensor(small, name, own):
            raise PlanError(f"{type(model).__name__} has no place for the plan's '{name}'.")
    apply_attributes(small, attributes)
    _check_layers(small, attributes)
    if thinning:
        thinning.apply(small)
    return small


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy of the model in which the named tensors are the given objects, wherever the model
    refers to them. Names may also be those of tensors it holds as plain attributes."""
    known = tensors_by_name(model)
    memo: dict[int, Any] = dict(computed(model))
    for name, tensor in tensors.items():
        old = known.get(name)
        if old is None:
            old = _attribute(model, name)
        if isinstance(old, Tensor):
            memo[id(old)] = tensor
    return copy.deepcopy(model, memo)


def add_tensor(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Give a module a tensor where it has None or nothing; False where there is no such place."""
    path, _, leaf = name.rpartition(".")
    owner = _attribute(model, path) if path else model
    if not isinstance(owner, nn.Module) or getattr(owner, leaf, None) is not None:
        return False
    if leaf not in owner._parameters and not hasattr(owner, "weight"):
        return False
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner._parameters.pop(leaf, None)
        owner.register_buffer(leaf, tensor)
    return True


def apply_attributes(model: nn.Module, attributes: Changes) -> None:
    """Set recorded attributes: {module path: {attribute: [old, new]}}; a dotted attribute is one of
    an object the module holds ("config.hidden_size").

    Only whole numbers and lists of them are set, where an instance has such a value, or, in a
    configuration, none. Raises PlanError, before anything is set, when the model has no such
    attribute or another value than the old one.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: list[tuple[Any, str, Any]] = []
    for path, changes in attributes.items():
        for name, (old, new) in changes.items():
            owner, leaf = _instance(modules.get(path), name)
            value = getattr(owner, leaf, None) if owner is not None else None
            if owner is None or plain(value) not in (old, new) or not _may_be(value, new):
                raise PlanError(
                    f"the plan changes {path or type(model).__name__}.{name} from {old} to {new}, "
                    f"but the model has {_said(value)}; apply it to a model of the original shapes."
                )
            found.append((owner, leaf, as_type_of(value, new)))
    for owner, leaf, new in found:
        setattr(owner, leaf, new)


def _check_layers(model: nn.Module, attributes: Changes) -> None:
    for path, changes in attributes.items():
        layer = model.get_submodule(path)
        wrong = disagreement(layer, changes)
        if wrong is not None:
            raise PlanError(
                f"the plan gives {path or type(model).__name__}.{wrong} the value "
                f"{_said(getattr(layer, wrong))}, which its tensors do not have: the plan is "
                "damaged."
            )


def _instance(module: nn.Module | None, name: str) -> tuple[Any, str]:
    """The object that has the attribute as its own, and the attribute's last name; (None, "") where
    there is none: no attribute of a class, no private name of Python, no method."""
    *outer, leaf = name.split(".")
    owner: Any = module
    for part in outer:
        owner = vars(owner).get(part) if _is_name(part) and hasattr(owner, "__dict__") else None
        if isinstance(owner, (type, ModuleType)) or callable(owner):
            return None, ""
    if owner is None or not _is_name(leaf) or not hasattr(owner, "__dict__"):
        return None, ""
    configures = hasattr(owner, "to_dict") and not hasattr(type(owner), leaf)
    known = leaf in vars(owner) or configures or _is_alias(owner, leaf)
    return (owner, leaf) if known else (None, "")


def _is_name(part: str) -> bool:
    return part.isidentifier() and not part.startswith("__")


def _is_alias(owner: Any, leaf: str) -> bool:
    """Whether a configuration has the attribute under another name."""
    aliases = getattr(type(owner), "attribute_map", None)
    return isinstance(aliases, dict) and aliases.get(leaf) in vars(owner)


def _may_be(value: Any, new: Any) -> bool:
    if is_whole(value) or value is None:
        return is_whole(new)
    members = isinstance(value, (list, tuple)) and isinstance(new, list)
    return members and all(map(is_whole, value)) and all(map(is_whole, new))


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, and no flag."""
    return isinstance(value, int) and not isinstance(value, bool)


def _said(value: Any) -> str:
    return str(value)[:80] if value is None or isinstance(value, (int, list, tuple)) else "another"


def holder(model: nn.Module, path: str, name: str) -> tuple[Any, str]:
    """The object that holds an attribute of a module, and the attribute's last name."""
    outer, _, leaf = name.rpartition(".")
    return _attribute(model, ".".join(filter(None, (path, outer)))), leaf


def scaled(tensor: Tensor, factor: Tensor) -> nn.Parameter:
    """A parameter times a factor, computed in double precision."""
    data = (tensor.detach().double() * factor.to(tensor.device)).to(tensor.dtype)
    return nn.Parameter(data, tensor.requires_grad)


def like(old: Tensor, new: Tensor) -> Tensor:
    """A copy of `new` with the kind, dtype and device of `old`."""
    data = new.detach().to(dtype=old.dtype, device=old.device, copy=True)
    return nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data


def _cut(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    data = tensor.detach()
    for axis, kept in axes.items():
        data = data.index_select(axis, kept.to(data.device))
    return like(tensor, data)


def _attribute(model: nn.Module, name: str) -> Any:
    value: Any = model
    for part in filter(None, name.split(".")):
        value = getattr(value, part, None)
    return value
