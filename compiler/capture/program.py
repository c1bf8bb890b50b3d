"""An ExportedProgram as a Program: regions inlined, asserts stripped, tensors by their names."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..ir.program import Program, is_symbolic
from .batch import free_batch
from .call_spec import call_spec_of, input_names
from .constant_index import slice_literal_lists
from .inline import drop_unused, inline_regions, strip_asserts
from .plain_names import name_plainly


def program_of(
    model: nn.Module, exported: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: str
) -> Program:
    """The Program of an ExportedProgram; `model` is where tied names are looked up."""
    stand_ins = name_plainly(exported)
    module = _unlifted(exported)
    inline_regions(module)
    graph = module.graph
    strip_asserts(graph)
    drop_unused(graph)
    tensors, aliases = _tensors(model, module, graph, stand_ins)
    slice_literal_lists(graph, tensors)
    drop_unused(graph)
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    values = [n.meta.get("val") for n in placeholders]
    dynamic = any(is_symbolic(s) for value in values for s in getattr(value, "shape", ()))
    named = {name: kwargs[name] for name in info.in_spec.children()[1].context or ()}
    bare = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = bare.graph_copy(graph, mapping)
    bare.output(
        tuple(pytree.tree_leaves(result)) if isinstance(result, (tuple, list)) else (result,)
    )
    return Program(
        graph=bare,
        tensors=tensors,
        aliases=aliases,
        source=model,
        args=args,
        kwargs=named,
        in_spec=info.in_spec,
        out_spec=info.out_spec,
        argument_names=list(info.orig_args),
        bodies={
            str(n.target): body
            for n in bare.nodes
            if n.op == "get_attr"
            and str(n.target) not in tensors
            and isinstance(body := _attribute(module, str(n.target)), nn.Module)
        },
        dynamic=dynamic,
        batched=free_batch(values, args, kwargs),
        call=call_spec_of(
            values,
            pytree.tree_leaves((args, named)),
            input_names(info.orig_args, (*args, *named.values())),
            exported.range_constraints,
        ),
        how=how,
    )


def _unlifted(exported: Any) -> fx.GraphModule:
    try:
        return exported.module(check_guards=False)
    except TypeError:  # torch 2.9 has no guards to leave out
        return exported.module()


def _tensors(
    model: nn.Module, module: fx.GraphModule, graph: fx.Graph, stand_ins: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Tensors by name, each once; get_attr nodes are redirected to that name."""
    names: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        value = _attribute(module, str(node.target))
        if not isinstance(value, Tensor):
            continue
        key = identity(value)
        target = str(node.target)
        name = names.setdefault(key, stand_ins.get(target, target))
        tensors.setdefault(name, value)
        node.target = name
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    others: dict[str, list[str]] = {}
    for name, value in known.items():
        canonical = names.get(identity(value))
        if canonical is not None and canonical != name:
            others.setdefault(canonical, []).append(name)
    return tensors, {name: tuple(found) for name, found in others.items()}


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """A key that tied tensors share: the same object, or the same view of the same storage."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value
