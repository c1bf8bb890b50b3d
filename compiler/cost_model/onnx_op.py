"""One op as an ONNX model of its own: contractions, which take most of the time of a model."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save_model
from torch import Tensor, fx

from ..inference.rule import bound_arguments, op_name
from ..onnx_files.session import OnnxSession
from .op_timing import op_milliseconds
from .stepping import Step

OPSET = 17
TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
MATMULS = ("aten::matmul", "aten::bmm", "aten::mm")
CONVOLUTIONS = ("aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::convolution")
ATTENTION = "aten::scaled_dot_product_attention"
EXPORTED = ("aten::linear", "aten::addmm", *MATMULS, *CONVOLUTIONS, ATTENTION)


class _Writer:
    """The nodes, inputs and weights of a model as it is put together."""

    def __init__(self, step: Step) -> None:
        given = (*step.node.args, *step.node.kwargs.values())
        values = (*step.args, *step.kwargs.values())
        pairs = [(n, v) for n, v in zip(given, values, strict=True) if isinstance(n, fx.Node)]
        self.operands = {n.name: v for n, v in pairs}
        self.held = {n.name for n, _ in pairs if n.op == "get_attr"}
        self.nodes: list[Any] = []
        self.inputs: dict[str, Tensor] = {}
        self.weights: list[Any] = []

    def name(self, node: Any, transposed: bool = False) -> str:
        """The ONNX name of an operand; weights become initializers, as an exporter makes them."""
        tensor: Tensor = self.operands[node.name]
        if node.name not in self.held:
            self.inputs[node.name] = tensor.contiguous()
            return node.name
        return self.constant(node.name, (tensor.T if transposed else tensor).cpu().numpy())

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        out = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def model(self) -> Any:
        kind = TYPES[next(iter(self.inputs.values())).dtype]
        given = [
            helper.make_tensor_value_info(n, TYPES[t.dtype], list(t.shape))
            for n, t in self.inputs.items()
        ]
        made = helper.make_tensor_value_info(self.nodes[-1].output[0], kind, None)
        graph = helper.make_graph(self.nodes, "op", given, [made], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )


def exported(step: Step) -> bool:
    """Whether an op is written as ONNX here: a contraction of floats that onnxruntime takes."""
    values = (*step.args, *step.kwargs.values())
    dtypes = {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}
    return op_name(step.node.target) in EXPORTED and dtypes <= set(TYPES)


def onnx_milliseconds(step: Step, device: torch.device) -> float:
    """Milliseconds of the op in onnxruntime, alone in a model."""
    writer = _Writer(step)
    _write(writer, op_name(step.node.target), bound_arguments(step.node))
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        path = Path(scratch) / "op.onnx"
        save_model(writer.model(), str(path))
        session = OnnxSession(path, device=device)
    return op_milliseconds(session.bound(writer.inputs), device, "onnxruntime")


def _write(writer: _Writer, op: str, given: dict[str, Any]) -> None:
    if op == "aten::linear":
        out = writer.add("MatMul", [writer.name(given["x"]), _matrix(writer, given["weight"])])
        _add_bias(writer, out, given.get("bias"))
    elif op == "aten::addmm":
        out = writer.add("MatMul", [writer.name(given["mat1"]), writer.name(given["mat2"])])
        _add_bias(writer, out, given["x"])
    elif op in MATMULS:
        second = given.get("other", given.get("mat2"))
        writer.add("MatMul", [writer.name(given["x"]), writer.name(second)])
    elif op == ATTENTION:
        _attention(writer, given)
    else:
        _convolution(writer, given)


def _matrix(writer: _Writer, weight: fx.Node) -> str:
    if weight.name in writer.held:
        return writer.name(weight, transposed=True)
    return writer.add("Transpose", [writer.name(weight)], perm=[1, 0])


def _add_bias(writer: _Writer, out: str, bias: Any) -> None:
    if bias is not None:
        writer.add("Add", [out, writer.name(bias)])


def _convolution(writer: _Writer, given: dict[str, Any]) -> None:
    inputs = [writer.name(given["x"]), writer.name(given["weight"])]
    if given.get("bias") is not None:
        inputs.append(writer.name(given["bias"]))
    rank = writer.operands[given["weight"].name].dim() - 2
    padding = given["padding"]
    attributes: dict[str, Any] = {
        "strides": _each(given["stride"], rank),
        "dilations": _each(given["dilation"], rank),
        "group": given["groups"],
    }
    if isinstance(padding, str):
        attributes["auto_pad"] = "SAME_UPPER" if padding == "same" else "VALID"
    else:
        attributes["pads"] = _each(padding, rank) * 2
    writer.add("ConvTranspose" if given.get("transposed") else "Conv", inputs, **attributes)


def _attention(writer: _Writer, given: dict[str, Any]) -> None:
    q, k, v = (given[n] for n in ("query", "key", "value"))
    rank = writer.operands[q.name].dim()
    perm = [*range(rank - 2), rank - 1, rank - 2]
    scale = np.float32(1 / math.sqrt(writer.operands[q.name].shape[-1]))
    dtype = writer.operands[q.name].cpu().numpy().dtype
    scaled = writer.add("Mul", [writer.name(q), writer.constant("scale", scale.astype(dtype))])
    scores = writer.add("MatMul", [scaled, writer.add("Transpose", [writer.name(k)], perm=perm)])
    mask = given.get("attn_mask")
    if isinstance(mask, fx.Node) and writer.operands[mask.name].is_floating_point():
        scores = writer.add("Add", [scores, writer.name(mask)])
    writer.add("MatMul", [writer.add("Softmax", [scores], axis=-1), writer.name(v)])


def _each(value: Any, rank: int) -> list[int]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (listed * rank if len(listed) == 1 else listed)]
