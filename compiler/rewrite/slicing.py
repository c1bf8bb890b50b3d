"""Kept indices of dimensions to kept indices of tensor axes; the only code that cuts tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ir.terms import Concat, Fixed, Indexed, Product, Term, Var, resolve, variables

Kept = Mapping[Var, Tensor]


def term_indices(term: Term, kept: Kept) -> Tensor:
    """The positions along an axis that remain (int64): `kept` gives, per variable, the entries that
    stay, in the order they shall have. A permutation of all entries permutes the axis."""
    term = resolve(term)
    if isinstance(term, Var):
        found = kept.get(term)
        return torch.arange(term.size) if found is None else found
    if isinstance(term, Fixed):
        return torch.arange(term.size or 0)
    if isinstance(term, Product):
        flat = torch.zeros(1, dtype=torch.int64)
        for factor in term.factors:
            flat = (flat[:, None] * (factor.size or 0) + term_indices(factor, kept)).reshape(-1)
        return flat
    if isinstance(term, Indexed):
        return (_new_places(term.base, term.index, kept) >= 0).nonzero().reshape(-1)
    pieces: list[Tensor] = []
    offset = 0
    for part in term.parts:
        pieces.append(term_indices(part, kept) + offset)
        offset += part.size or 0
    return torch.cat(pieces)


def gather_index(base: Term, index: Sequence[int], kept: Kept) -> Tensor:
    """The indices (int64) that take what remains of base[index] from what remains of the base, in
    the selection's own order."""
    places = _new_places(base, index, kept)
    return places[places >= 0]


def _new_places(base: Term, index: Sequence[int], kept: Kept) -> Tensor:
    """Where each selected entry of the base has gone, -1 for one that is removed."""
    stay = term_indices(base, kept)
    places = torch.full((base.size or 0,), -1)
    places[stay] = torch.arange(len(stay))
    return places[torch.tensor(index)]


def kept_size(term: Term, kept: Kept) -> int:
    """How many positions of an axis remain: the length of `term_indices`."""
    term = resolve(term)
    if isinstance(term, Var):
        found = kept.get(term)
        return term.size if found is None else len(found)
    if isinstance(term, Product):
        return math.prod(kept_size(factor, kept) for factor in term.factors)
    if isinstance(term, Concat):
        return sum(kept_size(part, kept) for part in term.parts)
    if isinstance(term, Indexed):
        return len(term_indices(term, kept))
    return term.size or 0


def term_labels(term: Term, var: Var) -> Tensor:
    """For each position along an axis, the entries of `var` it belongs to, -1 for none.

    int64 of shape [k, positions]: one row, but for a product that holds `var` k times (an outer
    product of a width with itself), where a position belongs to several entries.
    """
    term = resolve(term)
    if term is var:
        return torch.arange(var.size)[None]
    if isinstance(term, (Var, Fixed)):
        return torch.full((1, term.size or 0), -1, dtype=torch.int64)
    if isinstance(term, Product):
        rows: list[Tensor] = []
        sizes = [factor.size or 0 for factor in term.factors]
        for i, factor in enumerate(term.factors):
            if var in variables(factor):
                outer, inner = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
                rows += term_labels(factor, var).repeat_interleave(inner, 1).repeat(1, outer)
        for i, row in enumerate(rows):
            for earlier in rows[:i]:  # an entry owns a position once
                row[row == earlier] = -1
        return torch.stack(rows) if rows else torch.full((1, math.prod(sizes)), -1)
    if isinstance(term, Indexed):
        return term_labels(term.base, var)[:, torch.tensor(term.index)]
    pieces = [term_labels(part, var) for part in term.parts]
    depth = max(len(piece) for piece in pieces)
    return torch.cat([F.pad(p, (0, 0, 0, depth - len(p)), value=-1) for p in pieces], dim=1)


def touches(terms: Sequence[Term], kept: Kept) -> bool:
    """Whether any axis of a tensor carries one of the variables."""
    return any(v in kept for term in terms for v in variables(term))


def cut_tensor(tensor: Tensor, terms: Sequence[Term], kept: Kept) -> Tensor:
    """A copy of the tensor with its axes cut (or permuted) to the kept indices.

    A Parameter gives a Parameter with the same requires_grad. The source is never changed, and
    the copy shares no memory with it.
    """
    data = tensor.detach()
    for axis, term in enumerate(terms):
        if any(v in kept for v in variables(term)):
            data = data.index_select(axis, term_indices(term, kept).to(data.device))
    if not touches(terms, kept):
        data = data.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def spread_tensor(tensor: Tensor, terms: Sequence[Term], kept: Kept) -> Tensor:
    """A cut tensor at its full size again, zero where entries were removed: what `cut_tensor` takes
    back to it."""
    data = tensor.detach()
    for axis, term in enumerate(terms):
        if any(v in kept for v in variables(term)):
            places = term_indices(term, kept).to(data.device)
            full = list(data.shape)
            full[axis] = term.size or 0
            data = data.new_zeros(full).index_copy_(axis, places, data)
    return data


def zero_tensor(tensor: Tensor, terms: Sequence[Term], kept: Kept) -> Tensor:
    """The tensor with every slice of a removed entry set to zero (a copy where that changes it)."""
    data = tensor.detach()
    for axis, term in enumerate(terms):
        if any(v in kept for v in variables(term)):
            gone = torch.ones(data.shape[axis], dtype=torch.bool)
            gone[term_indices(term, kept)] = False
            where = gone.nonzero().reshape(-1).to(data.device)
            data = data.index_fill(axis, where, 0)
    return data
