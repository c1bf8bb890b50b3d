"""Which dtypes onnxruntime computes in, found out by trying."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import ExportError

_OPSET, _IR = 18, 9  # what every onnxruntime that prunec takes reads


def refuse_dtypes(model: nn.Module) -> None:
    """Raise ExportError where onnxruntime has no kernel for the dtype of the model's layers: its
    processor kernels know no bfloat16, for one."""
    asked = {(p.dtype, "MatMul") for p in model.parameters() if p.is_floating_point()}
    asked |= {
        (p.dtype, "Conv")
        for m in model.modules()
        if isinstance(m, _ConvNd)
        for p in m.parameters(recurse=False)
    }
    for dtype, op in sorted(asked, key=str):
        if not computes(dtype, op):
            word = str(dtype).removeprefix("torch.")
            raise ExportError(
                f"onnxruntime does not compute {op} in {word}, so no .onnx of this model could be"
                " checked: load the model in float32 or float16 for it, or leave ONNX out."
            )


@cache
def computes(dtype: torch.dtype, op: str) -> bool:
    """Whether onnxruntime takes a file of this one op."""
    import onnxruntime
    from onnx import TensorProto, helper

    number = _NUMBERS.get(dtype)
    if number is None:
        return False
    kind: Any = getattr(TensorProto, number)
    shape = [1, 1, 1, 1] if op == "Conv" else [1, 1]
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in "xwy"]
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"])], "one", ends[:2], ends[2:])
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR)
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), providers=onnxruntime.get_available_providers()
        )
    except Exception:  # each version says it in another way
        return False
    return True


_NUMBERS = {
    torch.float32: "FLOAT",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.float64: "DOUBLE",
}
