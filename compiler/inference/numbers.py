"""Values that are numbers of entries: what topk returns, and how far ops may handle such values.

Removing entries renumbers what stays. That is harmless while a value only moves about and is used,
in the end, to address the very dimension it numbers; any other use fixes the dimension.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..ir.terms import Reason, block, unify
from .rule import Inference, RuleContext, op_name

CARRIED = frozenset(
    (
        "view reshape _unsafe_view flatten unflatten unsqueeze squeeze transpose permute swapaxes "
        "movedim t expand expand_as contiguous clone detach alias to _to_copy type_as slice "
        "narrow select split split_with_sizes chunk unbind repeat repeat_interleave roll flip"
    ).split()
)
JOINED = frozenset(("cat", "concat", "concatenate", "stack"))
COPIED = frozenset("contiguous clone detach alias to _to_copy type_as".split())
SHAPE_ONLY = frozenset(
    "empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full".split()
)


def settle(context: RuleContext) -> None:
    """After a node's rule: pass numbers on through what only moves them, and fix the dimension
    whose numbers are used in any way that no rule has vouched for."""
    node, inference = context.node, context.inference
    numbered = [n for n in node.all_input_nodes if inference.numbers.get(n) is not None]
    name = op_name(node.target).removeprefix("aten::")
    joined = list(node.args[0]) if name in JOINED else []  # type: ignore[arg-type]
    carried = inference.numbers[numbered[0]] if numbered[:1] == [node.args[0]] else None
    if carried is not None and _keeps(context, name, carried.what):
        if isinstance(context.value, (tuple, list)):
            inference.numbers[node] = tuple(carried for _ in context.value)
        else:
            inference.numbers[node] = carried
    elif joined and set(joined) == set(numbered):
        _join(context, joined)
    elif name not in SHAPE_ONLY:
        for n in numbered:
            if n not in context.vouched:
                fix(inference, n, context.reason("its entries' numbers are used in another way"))


def _keeps(context: RuleContext, name: str, what: str) -> bool:
    """Whether the results of an op are its first operand's values, each as it was. Counts and
    offsets mean something in their own order only."""
    value = context.value
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return False
    return name in CARRIED if what == "entries" else name in COPIED


def _join(context: RuleContext, joined: list[fx.Node]) -> None:
    """Numbers of the same entries side by side, as of the first and the second choice."""
    inference = context.inference
    first = inference.numbers[joined[0]]
    if any(inference.numbers[n].what != "entries" for n in joined):
        for n in joined:
            fix(inference, n, context.reason("its entries' numbers are used in another way"))
        return
    for n in joined[1:]:
        unify(first.term, inference.numbers[n].term, context.reason("chosen side by side"))
    context.at_least(first.term, len(joined))
    inference.numbers[context.node] = first


def fix(inference: Inference, node: fx.Node, reason: Reason) -> None:
    """Fix what the values of a node number; counts number nothing."""
    numbers = inference.numbers.get(node)
    for n in numbers if isinstance(numbers, tuple) else (numbers,):
        if n is not None and n.what != "counts":
            block(n.term, reason)


def item(node: fx.Node, inference: Inference) -> None:
    """What getitem takes out of several results."""
    if node.target is operator.getitem:
        numbers = inference.numbers.get(node.args[0])  # type: ignore[arg-type]
        if isinstance(numbers, tuple):
            inference.numbers[node] = numbers[node.args[1]]  # type: ignore[index]
