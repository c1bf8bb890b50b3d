"""Whether onnxruntime's int8 products overflow on this machine."""

from __future__ import annotations

import functools

import numpy as np

DEEP = 32


@functools.cache
def products_saturate() -> bool:
    """Without VNNI, x86 adds two products of unsigned and signed bytes in 16 bits, which large
    values overflow: then 7 bits are all that weights may have. Found by one product of the largest
    values, since what onnxruntime runs depends on the processor."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    row, column = np.full((1, DEEP), 255, np.uint8), np.full((DEEP, 1), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, list(row.shape))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
        [numpy_helper.from_array(column, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"a": row})
    return int(np.asarray(found).item()) != 255 * 127 * DEEP
