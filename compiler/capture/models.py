"""Which models are captured: wrappers are taken off, what cannot be cut is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CaptureError
from ..option_types import shown

_FSDP = ("torch.distributed.fsdp", "torch.distributed._composable")
_SCRIPT = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
# Where layers of quantised weights come from.
_QUANTIZERS = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torchao",
    "bitsandbytes",
    "gptqmodel",
    "auto_gptq",
    "awq",
    "optimum.quanto",
    "quanto",
    "hqq",
    "transformers.integrations.bitnet",
    "transformers.integrations.eetq",
    "transformers.integrations.fbgemm",
    "transformers.integrations.finegrained_fp8",
    "transformers.integrations.gemma_quant",
    "transformers.integrations.higgs",
    "transformers.integrations.mxfp4",
    "transformers.integrations.nvfp4",
    "compressed_tensors",
)


def plain_model(model: Any) -> nn.Module:
    """The model itself, without DataParallel, DistributedDataParallel and torch.compile around it.

    Raises CaptureError, with the remedy, for what is no module, for scripted and traced modules,
    for sharded and quantised ones, and for weights that are not in memory.
    """
    found = model
    while True:
        inner = _inside(found)
        if inner is None:
            break
        found = inner
    if not isinstance(found, nn.Module):
        made = " (call it first)" if isinstance(found, type) else ""
        remedy = _SAVED_REMEDY if isinstance(found, (dict, str)) else ""
        if isinstance(found, _SCRIPT):
            raise _scripted(found)
        raise CaptureError(
            f"capture needs an nn.Module, not {shown(found)}{made}: pass the model itself{remedy}."
        )
    _require_plain(found)
    return found


_SAVED_REMEDY = (
    ", as in model.load_state_dict(...) for a state dict, or prunec compile MODEL for a path"
)


def _inside(model: Any) -> nn.Module | None:
    """What a wrapper holds; None for what is none."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return model.module
    if isinstance(model, torch._dynamo.OptimizedModule):
        return model._orig_mod
    return None


def _require_plain(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, _SCRIPT):
        raise _scripted(model)
    for path, part in model.named_modules():
        where = f"'{path}' ({type(part).__name__})" if path else type(part).__name__
        module = type(part).__module__
        if isinstance(part, _SCRIPT):
            raise _scripted(model)
        if module.startswith(_FSDP) or hasattr(part, "unshard"):
            raise CaptureError(
                f"{where} holds a shard of its weights: compile the model before it is sharded, "
                "and shard result.model."
            )
        if path and _inside(part) is not None:
            raise CaptureError(
                f"{where} inside {name} wraps another module: put the module that it wraps in its "
                "place, as in setattr(parent, name, wrapper.module) or wrapper._orig_mod."
            )
        if module.startswith(_QUANTIZERS) and any(True for _ in _own(part)):
            raise _quantized(model, where)
        if _offloaded(part):
            raise CaptureError(
                f"{where} is offloaded to disk or CPU: load {name} without device_map, offload "
                "and offload_folder, as in from_pretrained(NAME), so that its weights are in "
                "memory."
            )
    tensors = (*model.named_parameters(), *model.named_buffers())
    for path, tensor in tensors:
        _require_dense(path, tensor, model)
    empty = [path for path, tensor in tensors if tensor.is_meta]
    if empty and len(empty) < len(tensors):
        held = [p for p, t in model.named_parameters() if not t.is_meta]
        if held:
            raise CaptureError(
                f"'{empty[0]}' of {name} is on the meta device and '{held[0]}' is not: load all "
                "weights, as in from_pretrained(NAME) without device_map, or move the whole model "
                'by model.to("meta") for shapes alone.'
            )


def _own(part: nn.Module) -> Iterator[Any]:
    """Its own tensors, and those packed into an object."""
    yield from part.parameters(recurse=False)
    yield from part.buffers(recurse=False)
    if hasattr(part, "_packed_params") or hasattr(part, "_weight_bias"):
        yield part


def _require_dense(path: str, tensor: Tensor, model: nn.Module) -> None:
    kind = type(tensor)
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise CaptureError(
            f"'{path}' of {type(model).__name__} has no shape yet: run the model once on real "
            "inputs, as in model(x), and then compile it."
        )
    if tensor.is_quantized or kind.__module__.startswith(_QUANTIZERS):
        raise _quantized(model, f"'{path}'")
    if "DTensor" in kind.__name__:
        raise CaptureError(
            f"'{path}' holds a shard of its weights: compile the model before it is sharded or "
            "split over devices, and do so with result.model."
        )
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise CaptureError(
            f"'{path}' is {'nested' if tensor.is_nested else 'sparse'}: make it dense, as in "
            "tensor.to_dense() for a sparse one."
        )


def _quantized(model: nn.Module, where: str) -> CaptureError:
    hub = hasattr(getattr(model, "config", None), "quantization_config")
    how = (
        f"{type(model).__name__}.from_pretrained(NAME) of the checkpoint it was quantised from, "
        "without quantization_config"
        if hub
        else "the model as it was before it was quantised (quantize_, convert)"
    )
    return CaptureError(
        f"{where} holds quantised weights: compile the float model, {how}, and quantise "
        "result.model, or export int8 by result.quantize_onnx."
    )


def _scripted(model: Any) -> CaptureError:
    name = getattr(model, "original_name", None) or type(model).__name__
    return CaptureError(
        f"{name} is a traced or scripted module, whose Python is gone: pass the nn.Module that it "
        "was made from, before torch.jit.trace or torch.jit.script."
    )


def _offloaded(part: nn.Module) -> bool:
    """Whether accelerate fetches the weights of a module when it is called."""
    hook = getattr(part, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return any(getattr(one, "offload", False) for one in hooks)
