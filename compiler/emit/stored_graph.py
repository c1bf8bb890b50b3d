"""An emitted graph as plain values beside its tensors, and the graph module that these make."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ArtifactError
from ..ir.module_paths import at, is_plain
from .call_code import CallCodeGen, call_of
from .call_tree import only_plain
from .graph_module import EmittedGraph, body_names
from .graph_rows import Rows, graph_of, rows_of
from .leaf_rows import layer_of, layer_row
from .row_values import refused

LAYER_LIMIT = 200_000
DEPTH_LIMIT = 8  # of sub-graphs
PARTS_LIMIT = 40  # of a path
_KEYS = {"call", "layers", "nodes", "bodies"}
Place = Callable[[str], torch.device]


def graph_to_data(module: fx.GraphModule) -> dict[str, Any]:
    """An emitted graph without its tensors, as JSON values. Raises ArtifactError for what has no
    plain form: operators that are not torch's, layers that are not standard ones, arguments that
    are neither tensors, numbers nor containers of them."""
    codegen = module.graph._codegen
    assert isinstance(codegen, CallCodeGen)
    if not only_plain(codegen.pytree_info.in_spec):
        raise ArtifactError(
            "the model takes a class of arguments that no artifact holds: pass tensors in tuples, "
            "lists and dicts."
        )
    bodies = body_names(module)
    layers: dict[str, Any] = {}
    first: dict[int, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            path = codegen.path_of(str(node.target))
            layer = at(module, path)
            same = first.setdefault(id(layer), path)
            layers[path] = layer_row(path, layer) if same == path else {"same": same}
    return {
        "call": codegen.to_rows(),
        "layers": layers,
        "nodes": rows_of(module.graph, codegen.path_of, bodies, None),
        "bodies": {name: _body_data(at(module, name)) for name in sorted(bodies)},
    }


def _body_data(body: fx.GraphModule) -> dict[str, Any]:
    bodies = body_names(body)
    return {
        "nodes": rows_of(body.graph, str, bodies, None),
        "bodies": {name: _body_data(at(body, name)) for name in sorted(bodies)},
    }


def graph_from_data(
    data: Any,
    tensors: Mapping[str, Tensor],
    persistent: Container[str],
    place: Place,
    namespaces: Iterable[str] = (),
) -> EmittedGraph:
    """The graph module of `graph_to_data`'s values over tensors by name.

    `persistent`: the buffers its state dict holds. `place`: the device that one of the stored name
    shall be. Operators come from torch's own libraries and `namespaces`. Raises ArtifactError for
    anything that `graph_to_data` does not write, and where layers and tensors do not fit.
    """
    if not isinstance(data, dict) or not set(data) >= _KEYS:
        raise refused("no rows")
    layers, spaces = data["layers"], frozenset(namespaces)
    if not isinstance(layers, dict) or len(layers) > LAYER_LIMIT:
        raise refused("no table of layers, or too many")
    root = nn.Module()
    owned: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        outer, _, leaf = name.rpartition(".")
        owned.setdefault(outer, {})[leaf] = tensor
    for path, row in layers.items():
        if isinstance(row, dict) and set(row) == {"same"}:
            continue
        _register(root, path, layer_of(row, owned.get(path, {})))
    for path, row in layers.items():
        if isinstance(row, dict) and set(row) == {"same"}:
            known = isinstance(row["same"], str) and row["same"] in layers
            same = at(root, row["same"]) if known else None
            if not isinstance(same, nn.Module):
                raise refused("a layer that is the same as none")
            _register(root, path, same)
    for name, tensor in tensors.items():
        _register(root, name, tensor, name in persistent)
    for name, body in _bodies(data["bodies"]):
        _register(root, name, _body_of(body, tensors, name, place, spaces, 1))
    codegen = call_of(data["call"])
    known = {"tensor": tensors, "layer": layers, "body": data["bodies"]}
    graph = graph_of(data["nodes"], known, codegen.target_of, place, namespaces=spaces)
    _check_counts(data["nodes"], codegen)
    graph.set_codegen(codegen)
    return EmittedGraph(root, graph)


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of those of the same names."""
    for name, tensor in tensors.items():
        outer, _, leaf = name.rpartition(".")
        owner = at(module, outer) if outer else module
        table: Any = owner._parameters if leaf in owner._parameters else owner._buffers
        table[leaf] = tensor


def _body_of(
    data: Any, tensors: Mapping[str, Tensor], path: str, place: Place, spaces: Any, depth: int
) -> fx.GraphModule:
    if not isinstance(data, dict) or set(data) != {"nodes", "bodies"} or depth > DEPTH_LIMIT:
        raise refused("a sub-graph of no known form")
    root = nn.Module()
    inside = f"{path}."
    own = {n[len(inside) :]: t for n, t in tensors.items() if n.startswith(inside)}
    for name, tensor in own.items():
        _register(root, name, tensor)
    for name, body in _bodies(data["bodies"]):
        inner = _body_of(body, own, name, place, spaces, depth + 1)
        _register(root, name, inner)
    known = {"tensor": own, "layer": (), "body": data["bodies"]}
    return fx.GraphModule(root, graph_of(data["nodes"], known, _plain, place, namespaces=spaces))


def _bodies(data: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(data, dict) or len(data) > LAYER_LIMIT:
        raise refused("no table of sub-graphs")
    return data.items()


def _plain(path: str) -> str:
    if not is_plain(path):
        raise refused(f"the name {path[:60]!r} in a sub-graph")
    return path


def _register(root: nn.Module, path: str, value: Any, persistent: bool = True) -> None:
    """Put a module, parameter or buffer at a path, making plain modules on the way."""
    parts = path.split(".")
    if len(parts) > PARTS_LIMIT or not all(0 < len(p) <= 500 for p in parts):
        raise refused(f"the name {path[:60]!r}")
    if any(part.startswith("__") for part in parts):
        raise refused(f"the name {path[:60]!r}")
    module: Any = root
    try:
        for part in parts[:-1]:
            if module._modules.get(part) is None:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        if isinstance(value, nn.Module):
            module.add_module(parts[-1], value)
        elif isinstance(value, nn.Parameter):
            module.register_parameter(parts[-1], value)
        else:
            module.register_buffer(parts[-1], value, persistent=persistent)
    except (KeyError, AttributeError, TypeError) as error:  # taken, by another or by torch
        raise refused(f"the name {path[:60]!r}, which another has") from error


def _check_counts(rows: Rows, codegen: CallCodeGen) -> None:
    _, in_spec, out_spec = codegen.pytree_info
    result = rows[-1][1]
    members = result.get("tuple") if isinstance(result, dict) else result
    inputs = sum(row[0] == "input" for row in rows)
    if inputs != in_spec.num_leaves or not isinstance(members, list):
        raise refused("arguments that do not agree with each other")
    if out_spec is None or len(members) != out_spec.num_leaves:
        raise refused("results that do not agree with each other")
