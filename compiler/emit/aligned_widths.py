"""Widths that kernels need aligned, which the class calls as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from ..inference.rule import Inference, op_name
from ..ir.terms import Product, Term, Var, known_size, resolve, variables

# op -> bytes that the strides of its first two operands are multiples of. The second stands for the
# first while a model is traced (transformers, integrations/moe.py); eagerly the first one runs.
ALIGNED = {"aten::_grouped_mm": 16, "transformers::grouped_mm_fallback": 16}


def aligned_widths(inference: Inference) -> Iterator[tuple[Var, int]]:
    """Variables, and what their widths have to be multiples of (entries)."""
    for node in inference.terms:
        limit = ALIGNED.get(op_name(node.target)) if node.op == "call_function" else None
        for x in node.args[:2] if limit else ():
            if not isinstance(x, fx.Node) or not isinstance(x.meta.get("val"), torch.Tensor):
                continue
            value, terms = x.meta["val"], inference.terms.get(x)
            strides = list(value.stride())
            if isinstance(terms, list) and 1 in strides:
                multiple = limit // value.element_size()  # type: ignore[operator]
                yield from _multiples(terms[strides.index(1)], multiple)


def _multiples(term: Term, multiple: int) -> Iterator[tuple[Var, int]]:
    """How a term's width becomes a multiple: each part of a concatenation is one, one factor of a
    product. A size that is none now is a kernel's that takes others."""
    term = resolve(term)
    size = known_size(term)
    if multiple <= 1 or size is None or size % multiple:
        return
    if isinstance(term, Product):
        fitting = [f for f in term.factors if (known_size(f) or 1) % multiple == 0]
        if fitting:
            yield from _multiples(fitting[-1], multiple)
            return
    for var in variables(term):
        if var.size is not None and var.size % multiple == 0:
            yield var, multiple
