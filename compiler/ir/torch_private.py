"""What prunec reads of torch that torch keeps private; tests/test_torch_private.py touches each."""

from __future__ import annotations

import torch


def namespaces() -> frozenset[str]:
    """The namespaces that ops are registered in by now."""
    names = torch._C._dispatch_get_all_op_names()
    return frozenset(name.partition("::")[0] for name in names)


def argument_names(op: str) -> set[str] | None:
    """The argument names of an op, `namespace::name`, over its overloads; None: there is no such
    op."""
    space, _, name = op.partition("::")
    packet = getattr(getattr(torch.ops, space), name, None)
    if packet is None:
        return None
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return {argument.name for schema in schemas for argument in schema.arguments}
