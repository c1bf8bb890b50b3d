"""Products of two values of the model: attention or weighted sums, told by what softmax runs over.

A softmax that the result goes into, or that an operand comes from, makes it attention, as does an
axis of its own on either side (linear attention has no softmax). Weights that have no axis of their
own and run over entries of a matrix mix what those entries gave: experts. What is left (a bilinear
form, a sum of products) says nothing of what its axes are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from torch import fx

from ..ir.terms import Term, resolve, variables

if TYPE_CHECKING:
    from .rule import Inference

_SOFTMAX = ("aten::softmax", "aten::_softmax", "aten::log_softmax", "aten::_log_softmax")
_STEPS = 12  # ops between a product and its softmax: scale, mask, views


@dataclasses.dataclass(frozen=True)
class Product:
    """A node that multiplies values of the model: the terms it sums over between two of them, those
    that each has for itself beyond it, those they share there. `stacked`: of the summed ones
    those that a weight has too. `widths`: what an attention would call head widths."""

    node: fx.Node
    operands: tuple[fx.Node, ...]
    summed: tuple[Term, ...]
    own: tuple[tuple[Term, ...], ...]
    shared: tuple[Term, ...]
    widths: tuple[Term, ...]
    stacked: tuple[Term, ...] = ()


def product_roles(inference: Inference) -> Iterator[tuple[Term, str]]:
    """The roles of the axes of all products of a program."""
    products = {product.node for product in inference.products}
    contracting = {sink.node for sink in inference.sinks} | products
    for product in inference.products:
        one_sided = not all(map(_wide, product.own))
        featured = any(variables(term) for term in product.summed)
        if not (one_sided and featured):
            yield from _attention(product)
            continue
        mixing = _softmaxed(product, contracting) or product.stacked
        if mixing:
            for term in (*product.summed, *product.stacked):
                yield term, "mixed"
        elif _goes_into_softmax(product, contracting):
            yield from _attention(product)


def _attention(product: Product) -> Iterator[tuple[Term, str]]:
    for term in product.shared:
        yield term, "head"
    for term in product.widths:
        yield term, "head-dim"


def _wide(terms: Collection[Term]) -> bool:
    return any(resolve(term).size != 1 for term in terms)


def _softmaxed(product: Product, contracting: Collection[fx.Node]) -> bool:
    """Whether an operand without axes of its own comes from a softmax."""
    return any(
        not _wide(own) and _meets_softmax(x, contracting, backwards=True)
        for x, own in zip(product.operands, product.own, strict=True)
    )


def _goes_into_softmax(product: Product, contracting: Collection[fx.Node]) -> bool:
    return any(_meets_softmax(user, contracting, backwards=False) for user in product.node.users)


def _meets_softmax(node: fx.Node, contracting: Collection[fx.Node], backwards: bool) -> bool:
    """Whether a softmax lies before (or after) a value, at it or beyond a few ops that contract
    nothing."""
    level, seen = [node], {node}
    for _ in range(_STEPS):
        following: list[fx.Node] = []
        for at in level:
            if at.op == "call_function" and _is_softmax(at):
                return True
            if at in contracting:
                continue
            for other in at.all_input_nodes if backwards else at.users:
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        level = following
    return False


def _is_softmax(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name in _SOFTMAX
