"""Each name that compiler/ir/torch_private.py takes from torch's private part is there."""

from __future__ import annotations

from prunec.compiler.ir.torch_private import argument_names, namespaces


def test_ops_and_their_arguments_are_known() -> None:
    assert {"aten", "prims"} <= namespaces()
    assert argument_names("aten::linear") == {"input", "weight", "bias", "out"}
    assert (argument_names("aten::sum") or set()) >= {"self", "dim", "keepdim", "dtype"}
    assert argument_names("aten::linaer") is None
