"""The graph back end's result: ATen nodes folded back into real leaf modules, by original name.

A captured graph bakes dropout and batch norm to the mode it was captured in. A node that is all a
standard layer does becomes a call of that layer, so train(), state-dict keys, LoRA, hooks and
quantisers go on working. LSTM's dropout stays as captured; functional dropout becomes modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program
from .call_code import CallCodeGen, call_codegen
from .graph_module import EmittedGraph, plain_meta
from .leaf_table import LeafSpec, describe

ModuleCall = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
OWN_MODULE = "prunec_module_"  # the names of modules that stand for functions


def leaf_specs(model: nn.Module, program: Program) -> dict[str, LeafSpec]:
    """The standard leaf layers that the program's nodes ran in, by module path: taken from the
    original model, so that its graph can be emitted without it."""
    used = {innermost(node) for node in program.graph.nodes} - {""}
    names: dict[int, str] = {}
    specs: dict[str, LeafSpec] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        first = names.setdefault(id(module), path)
        spec = describe(module, first) if path in used else None
        if spec is not None:
            specs[path] = spec
    return specs


def persistent_names(model: nn.Module) -> set[str]:
    """The names of the parameters and buffers that the model's state dict holds."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in (*module._parameters, *module._buffers)
        if name not in module._non_persistent_buffers_set
    }


def emit_graph_module(
    program: Program,
    leaves: dict[str, LeafSpec],
    persistent: Collection[str] | None = None,
    modules: Mapping[str, ModuleCall] | None = None,
) -> fx.GraphModule:
    """The program as a GraphModule with the model's signature and type of result.

    It holds the program's own tensors (the same objects) under their dotted names; a tied one is
    found under each of its names, as in the original's state dict, and listed once by
    `parameters()`. Nodes that are a leaf of `leaves` call that leaf. `persistent`: the buffers its
    state dict holds, by default as in `program.source`. `modules`: per node name, a module of its
    own to call in its place, with what arguments. It starts in the train/eval mode of
    `program.source`.
    """
    if persistent is None:
        persistent = persistent_names(program.source)
    root = nn.Module()
    root.training = program.source.training
    codegen = call_codegen(program)
    graph = _folded(program, _Leaves(program, root, leaves), modules or {}, codegen)
    for name, tensor in program.tensors.items():
        for known in (name, *program.aliases.get(name, ())):
            _register(root, known, tensor, known in persistent)
    for name, body in program.bodies.items():
        _parent(root, name).add_module(name.rpartition(".")[2], body)
    graph.set_codegen(codegen)
    graph.lint()
    return EmittedGraph(root, graph)


def _folded(
    program: Program, leaves: _Leaves, modules: Mapping[str, ModuleCall], codegen: CallCodeGen
) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if leaves.is_counter(node):
            copies[node] = copies[node.args[0]]  # type: ignore[index]
            continue
        call = leaves.call(node)
        if call is None and node.name in modules:
            module, args, kwargs = modules[node.name]
            path = f"{OWN_MODULE}{node.name}"
            leaves.root.add_module(path, module.train(leaves.root.training))
            args, kwargs = map_arg((args, kwargs), copies.__getitem__)
            copies[node] = graph.create_node("call_module", path, args, kwargs, name=node.name)
            stack = dict(node.meta.get("nn_module_stack") or {})
            stack[path] = (path, f"{type(module).__module__}.{type(module).__qualname__}")
            copies[node].meta = {**node.meta, "nn_module_stack": stack}
        elif call is None:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "get_attr":
                copies[node].target = codegen.target_of(str(node.target))
        else:
            path, x = call
            target = codegen.target_of(path)
            copies[node] = graph.create_node("call_module", target, (copies[x],), name=node.name)
            copies[node].meta = node.meta
        copies[node].meta = plain_meta(copies[node])
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return graph


def innermost(node: fx.Node) -> str:
    """The path of the module whose forward made the node ('' for the model itself)."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack or not isinstance(stack[-1], tuple) or not isinstance(stack[-1][0], str):
        return ""
    return re.sub(r"@\d+", "", stack[-1][0])  # a module's second call is marked `name@1`


class _Leaves:
    """The leaf modules of one emission, made as nodes ask for them, with the program's tensors."""

    def __init__(self, program: Program, root: nn.Module, specs: dict[str, LeafSpec]) -> None:
        self.program = program
        self.root = root
        self.specs = {path: spec for path, spec in specs.items() if path}
        self.made: dict[str, nn.Module] = {}
        self.names = {name: {name, *program.aliases.get(name, ())} for name in program.tensors}

    def is_counter(self, node: fx.Node) -> bool:
        """Whether the node counts batches for a batch norm, which as a module does so itself."""
        spec = self.specs.get(innermost(node))
        counts = spec is not None and "num_batches_tracked" in spec.attributes
        return counts and op_name(node.target) == "aten::add_"

    def call(self, node: fx.Node) -> tuple[str, fx.Node] | None:
        """The path of the leaf that does what the node does, and its input; None for no leaf."""
        path = innermost(node)
        spec = self.specs.get(path)
        name = op_name(node.target).removeprefix("aten::")
        if spec is None or name.removesuffix("_") != spec.kind.op:
            return None
        given = bound_arguments(node)
        x = given["indices"] if spec.kind.op == "embedding" else given["x"]
        given["inplace"] = name.endswith("_")
        if not _agree(spec, given) or not self._take_tensors(path, spec, given):
            return None
        return (path, x) if self._place(path, spec, given) else None

    def _take_tensors(self, path: str, spec: LeafSpec, given: dict[str, Any]) -> bool:
        """Replace the tensor arguments by the tensors; False unless they are the leaf's own."""
        for argument in spec.kind.tensors:
            value = given[argument]
            if value is None:
                continue
            if not isinstance(value, fx.Node) or value.op != "get_attr":
                return False
            target = str(value.target)
            if f"{path}.{argument}" not in self.names.get(target, ()):
                return False
            given[argument] = self.program.tensors[target]
            is_parameter = isinstance(given[argument], nn.Parameter)
            if is_parameter == argument.startswith("running_"):
                return False
        return True

    def _place(self, path: str, spec: LeafSpec, given: dict[str, Any]) -> bool:
        """Put the leaf at its path, made on first use; False if an earlier call had other sizes."""
        sizes = spec.kind.sizes(given)
        if sizes is None:
            return False
        leaf = self.made.get(spec.module)
        if leaf is None:
            leaf = self.made[spec.module] = _construct(spec, sizes, given)
        elif any(getattr(leaf, k) != v for k, v in sizes.items() if not isinstance(v, bool)):
            return False
        _parent(self.root, path).add_module(path.rpartition(".")[2], leaf)
        return True


def _construct(spec: LeafSpec, sizes: dict[str, Any], given: dict[str, Any]) -> nn.Module:
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in spec.attributes.items()
        if key in spec.kind.options
    }
    if spec.kind.tensors:
        options["device"] = "meta"  # its tensors are replaced at once
    leaf = spec.kind.cls(**options, **sizes)
    for argument in spec.kind.tensors:
        if argument in leaf._buffers:
            leaf._buffers[argument] = given[argument]
        elif argument in leaf._parameters or given[argument] is not None:
            leaf._parameters[argument] = given[argument]
    if leaf._buffers.get("num_batches_tracked") is not None:
        count = spec.attributes.get("num_batches_tracked", 0)
        device = given["running_mean"].device
        leaf._buffers["num_batches_tracked"] = torch.tensor(count, device=device)
    if hasattr(leaf, "inplace"):
        leaf.inplace = given["inplace"]
    return leaf.train(spec.training)


def _agree(spec: LeafSpec, given: dict[str, Any]) -> bool:
    """Whether the op's arguments are those the layer would pass."""
    attributes = spec.attributes
    if attributes.get("padding_mode", "zeros") != "zeros" or attributes.get("max_norm") is not None:
        return False
    for key in spec.kind.agree:
        attribute = attributes.get(key)
        if key == "padding_idx" and attribute is None:
            attribute = -1
        value = list(given[key]) if isinstance(given[key], (list, tuple)) else given[key]
        if value != attribute:
            return False
    return True


def _register(root: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    parent, leaf = _parent(root, name), name.rpartition(".")[2]
    if isinstance(tensor, nn.Parameter):
        parent.register_parameter(leaf, tensor)
    else:
        parent.register_buffer(leaf, tensor, persistent=persistent)


def _parent(root: nn.Module, name: str) -> nn.Module:
    """The module that holds a dotted name; plain modules are made where there is none."""
    module = root
    for part in name.split(".")[:-1]:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            child.training = root.training
            module.add_module(part, child)
        module = child
    return module
