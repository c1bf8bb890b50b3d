"""How many directions a layer's inputs can have, by what they are made from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

_PASSED = frozenset(
    "view reshape _unsafe_view flatten unsqueeze squeeze transpose permute contiguous clone to "
    "dropout alias detach expand mul div neg layer_norm rms_norm native_layer_norm".split()
)
_LAYERS = frozenset("linear addmm mm matmul".split())


def directions(node: fx.Node, tensors: Mapping[str, Tensor]) -> int | None:
    """The inputs of the layer that gives what this one reads, where nothing between the two but a
    norm or a view makes more of them: two layers one after the other, of which the first is
    narrow. None where something does, or it is not known. `tensors`: the program's, by name."""
    operand = node.all_input_nodes[0] if node.all_input_nodes else None
    while isinstance(operand, fx.Node) and operand.op == "call_function":
        name = str(operand.target).split(".")[1] if "." in str(operand.target) else ""
        if name in _LAYERS:
            weights = [tensors.get(str(n.target)) for n in operand.all_input_nodes]
            known = [w for w in weights if w is not None and w.dim() == 2]
            if len(known) != 1:
                return None
            own = known[0].shape[1 if name == "linear" else 0]
            return min(own, directions(operand, tensors) or own)
        if name not in _PASSED or not operand.all_input_nodes:
            return None
        operand = operand.all_input_nodes[0]
    return None
