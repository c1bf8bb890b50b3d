"""The sizes that a transformers config states, once the model's dimensions have shrunk."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..ir.terms import Fixed, Var, resolve
from .baked_sizes import Decision
from .valid_config import accepted

_KINDS = {
    "residual": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "hidden_dim"),
    "hidden": (
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "d_ff",
        "hidden_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "ffn_hidden_size",
        "mlp_dim",
    ),
    "head": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ),
    "kv-head": ("num_key_value_heads", "n_kv_heads"),
    "head-dim": ("head_dim", "d_kv", "attention_head_size", "kv_channels"),
    "expert": (
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "n_experts",
        "num_routed_experts",
        "moe_num_routed_experts",
    ),
}
_COUNTS = ("head", "kv-head", "expert")  # kinds of which modules keep a count they rarely read


# a hidden width whose activation adds is found as residual; kv heads without groups are heads
_FOUND_AS = {"hidden": ("hidden", "residual"), "kv-head": ("kv-head", "head")}
_LISTS = (("heads", "head"), ("hidden_size", "residual"), ("dim", "residual"))
_SIDES = ("encoder", "decoder", "text", "vision")  # parts with sizes of their own


def config_decision(
    graph: Graph, sizes: dict[Var, int], module: nn.Module, notes: list[str] | None = None
) -> Decision | None:
    """What the configs inside a model would state about its new sizes, as one decision, for the
    sizes on which all layers agree; with `notes` only those that their own class accepts, and the
    notes say which it does not. None without a config or a change."""
    values: dict[tuple[str, str], Any] = {}
    seen: set[int] = set()
    reads_head_width = any("head_dim" in vars(part) for part in module.modules())
    for path, part in module.named_modules():
        config = vars(part).get("config")
        for name, inner in _configs(config, "config"):
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            new = _new_values(graph, sizes, inner, name)
            if reads_head_width:
                new |= _head_width(graph, sizes, inner)
            said = {key: value for key, value in new.items() if _readable(inner, key)}
            values.update({(path, f"{name}.{key}"): value for key, value in said.items()})
    if notes is not None:
        values = _accepted(values, module, notes)
    return Decision("config", ({}, values)) if values else None


def _accepted(
    values: dict[tuple[str, str], Any], module: nn.Module, notes: list[str]
) -> dict[tuple[str, str], Any]:
    """Those of the values that every config's class accepts."""
    found: dict[tuple[str, str], Any] = {}
    for path in dict.fromkeys(path for path, _ in values):
        owner = module.get_submodule(path)
        own = {k.partition(".")[2]: v for (p, k), v in values.items() if p == path}
        taken, why = accepted(owner.config, own, owner)
        found.update({(path, f"config.{key}"): own[key] for key in own if key in taken})
        left = [f"{key} {value}" for key, value in own.items() if key not in taken]
        if left:
            name = type(owner.config).__name__
            notes.append(f"{name} does not state {', '.join(left)}, which it refuses: {why}")
    return found


def count_decision(
    graph: Graph, sizes: dict[Var, int], module: nn.Module, taken: Collection[tuple[str, str]]
) -> Decision | None:
    """Counts (of heads, of experts) that modules keep as attributes named as a config names them
    and that no evidence speaks of: a loss may read them. None where there is none.

    `taken`: (module path, attribute) that other decisions are about."""
    values: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        for kind in _COUNTS:
            for key in _KINDS[kind]:
                old = vars(part).get(key)
                if (path, key) in taken or type(old) is not int:
                    continue
                new = _agreed(graph, sizes, kind, old, "")
                if new is not None:
                    values[path, key] = new
    return Decision("count", ({}, values)) if values else None


def _configs(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(config, "to_dict") or not hasattr(config, "__dict__"):
        return
    yield name, config
    for key, value in vars(config).items():
        if key.endswith("config") or key in ("encoder", "decoder"):
            yield from _configs(value, f"{name}.{key}")


def _new_values(graph: Graph, sizes: dict[Var, int], config: Any, name: str) -> dict[str, Any]:
    """The config's attributes whose old value every dimension of that kind and size has left."""
    found: dict[str, Any] = {}
    for kind, keys in _KINDS.items():
        for key in keys:
            if key in vars(config):
                side = next((s for s in _SIDES if key.startswith(s) or f"{s}_config" in name), "")
                new = _agreed(graph, sizes, kind, _meant(config, key), side)
                if new is not None:
                    found[key] = new
    for key, value in vars(config).items():
        if type(value) in (list, tuple) and value and all(type(v) is int for v in value):
            stages = _staged(graph, sizes, key, list(value))
            if stages != list(value):
                found[key] = stages
    return found


def _staged(graph: Graph, sizes: dict[Var, int], key: str, old: list[int]) -> list[int]:
    """A list that states one size per stage (`hidden_sizes`), by what each size has become."""
    kind = next((kind for word, kind in _LISTS if word in key), None)
    if kind is None:
        return old
    return [_agreed(graph, sizes, kind, size, "") or size for size in old]


def _stated(config: Any, key: str) -> Any:
    """What a config says; None where it does not."""
    return getattr(config, key, None) if _readable(config, key) else None


def _readable(config: Any, key: str) -> bool:
    """Whether a config may be asked for a value: one of unequal layers raises."""
    try:
        getattr(config, key, None)
    except Exception:
        return False
    return True


def _meant(config: Any, key: str) -> Any:
    """The size a config states, or means when it states none."""
    value = _stated(config, key)
    width = _stated(config, "hidden_size")
    heads = _stated(config, "num_attention_heads")
    if value is None and type(width) is int and type(heads) is int and heads:
        return {"n_inner": 4 * width, "head_dim": width // heads}.get(key)
    return value


def _head_width(graph: Graph, sizes: dict[Var, int], config: Any) -> dict[str, Any]:
    """`head_dim` where it is no longer hidden_size / heads: attention that reads it takes it."""
    keys = {"residual": "hidden_size", "head": "num_attention_heads", "head-dim": "head_dim"}
    old = {kind: _meant(config, key) for kind, key in keys.items()}
    new = {kind: _agreed(graph, sizes, kind, old[kind], "") or old[kind] for kind in keys}
    if (
        None in new.values()
        or new == old
        or isinstance(getattr(type(config), "head_dim", None), property)
    ):
        return {}
    implied = _stated(config, "head_dim") is None
    if implied and new["residual"] == new["head"] * new["head-dim"]:
        return {}
    return {} if _stated(config, "head_dim") == new["head-dim"] else {"head_dim": new["head-dim"]}


def _agreed(graph: Graph, sizes: dict[Var, int], kind: str, old: Any, side: str) -> int | None:
    """The one new size of all dimensions of a kind that had the old size; None if they differ."""
    if type(old) is not int:
        return None
    new = {now for before, now in _measured(graph, sizes, kind, side) if before == old}
    return new.pop() if len(new) == 1 and new != {old} else None


def _measured(
    graph: Graph, sizes: dict[Var, int], kind: str, side: str
) -> Iterator[tuple[int, int]]:
    """(old, new) sizes of the dimensions of a kind; heads as attention sees them, with repeats."""
    if kind in ("head", "head-dim"):
        for term, role in graph.inference.roles:
            term = resolve(term)
            outside = isinstance(term, Fixed) and term.reason.text.startswith("model input")
            if role == kind and term.size is not None and not outside:
                yield term.size, width_of(term, sizes)
        return
    for dimension in graph.dimensions.values():
        if dimension.var is None or (side and side not in dimension.name):
            continue
        if dimension.kind in _FOUND_AS.get(kind, (kind,)):
            yield dimension.size, sizes.get(dimension.var, dimension.size)
