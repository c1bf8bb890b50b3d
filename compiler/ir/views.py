"""Terms under a row-major view, and at another size of a dynamic extent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .terms import (
    UNIT,
    Fixed,
    Indexed,
    Product,
    Reason,
    Term,
    Var,
    block,
    concat,
    factor,
    known_size,
    leaves,
    product,
    resolve,
)


def fitted(term: Term, size: int) -> Term:
    """The term of the same axis at another size of its dynamic extent: the first fixed part that
    can make the difference does. Unchanged where none can."""
    term = resolve(term)
    if term.size == size or isinstance(term, (Var, Indexed)):
        return term
    if isinstance(term, Fixed):
        return Fixed(size, term.reason)
    pieces = list(term.factors if isinstance(term, Product) else term.parts)
    for i, piece in enumerate(pieces):
        if isinstance(term, Product):
            others = math.prod(known_size(p) for k, p in enumerate(pieces) if k != i)
            wanted = size // others if others and size % others == 0 else 0
        else:
            wanted = size - (term.size - known_size(piece))
        if wanted > 0 and any(isinstance(leaf, Fixed) for leaf in leaves(piece)):
            changed = fitted(piece, wanted)
            if changed.size == wanted:
                pieces[i] = changed
                return product(pieces) if isinstance(term, Product) else concat(pieces)
    return term


def reshape(terms: Sequence[Term], sizes: Sequence[int], reason: Reason) -> list[Term] | None:
    """The terms of a row-major view: `terms` (input axes) seen as axes of `sizes`.

    Returns None when sizes are unknown or do not match; the caller then fixes the input.
    """
    ins = [resolve(t) for t in terms]
    if any(not t.size for t in ins) or any(s <= 0 for s in sizes):
        return None
    if math.prod(known_size(t) for t in ins) != math.prod(sizes):
        return None
    out: list[Term] = []
    i = j = 0
    while i < len(ins) or j < len(sizes):
        # the smallest group of input axes that covers whole output axes
        i0, j0 = i, j
        have = want = 1
        while i == i0 or j == j0 or have != want:
            if (have <= want and i < len(ins)) or j >= len(sizes):
                if i >= len(ins):
                    break
                have *= known_size(ins[i])
                i += 1
            else:
                want *= sizes[j]
                j += 1
        out.extend(_view_group(ins[i0:i], sizes[j0:j], reason))
    return out


def _view_group(terms: Sequence[Term], sizes: Sequence[int], reason: Reason) -> list[Term]:
    rest = product(terms)
    out: list[Term] = []
    for k, size in enumerate(sizes):
        if k == len(sizes) - 1 or all(s == 1 for s in sizes[k + 1 :]):
            if known_size(rest) == size:
                out.append(rest)
                rest = UNIT
                continue
        pair = factor(rest, size)
        if pair is None:
            block(rest, reason)
            out.extend(Fixed(s, reason) for s in sizes[k:])
            break
        out.append(pair[0])
        rest = resolve(pair[1])
    return out
