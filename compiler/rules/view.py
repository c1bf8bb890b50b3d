"""Ops that move axes, split them, join them or view them otherwise; no arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..inference.rule import NodeRewriter, RuleContext, Terms, op_rule
from ..ir.program import is_symbolic, shape_of
from ..ir.terms import (
    UNIT,
    Fixed,
    Term,
    concat,
    cut,
    factor,
    known_size,
    product,
    resolve,
)
from ..ir.views import reshape


def viewed(c: RuleContext, x: Any, sizes: Sequence[int | None], argument: str | None) -> Terms:
    """The terms of a row-major view of x as `sizes`; `argument` holds the sizes to rewrite."""
    terms = c.terms(x)
    out: Terms | None = None
    if all(s is not None for s in sizes):
        out = reshape(terms, [s for s in sizes if s is not None], c.reason("view cuts across it"))
    if out is None:
        c.block_all(x, "view of a shape not known at capture")
        out = [c.fixed(s) for s in sizes]
    if argument:
        c.resize(argument, out)
    return out


@op_rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::_reshape_alias")
def view(c: RuleContext, x: Any, size: Any, dtype: Any) -> Terms:
    if dtype is not None and size is None:
        c.block_all(x, "view as another dtype")
        return [c.fixed(s) for s in c.out_shape]
    out = viewed(c, x, c.out_shape, "shape" if c.op == "reshape" else "size")
    if c.op == "view":
        terms = c.terms(x)
        c.on_rewrite(lambda rw: _allow_a_copy(rw, terms))
    return out


def _allow_a_copy(rw: NodeRewriter, terms: Terms) -> None:
    """What was contiguous at capture need not be at other widths: axes of size 1 leave strides
    open, and attention lays its result out as the kernel for its head width does. Reshape views
    where it can."""
    if any(map(rw.changed, terms)):
        rw.node.target = torch.ops.aten.reshape.default


@op_rule("aten::view_as", "aten::reshape_as")
def view_as(c: RuleContext, x: Any, other: Any) -> Terms:
    out = viewed(c, x, c.out_shape, None)
    for a, b in zip(out, c.terms(other), strict=True):
        c.unify(a, b)
    return out


@op_rule("aten::flatten")
def flatten(c: RuleContext, x: Any) -> Terms:
    return viewed(c, x, c.out_shape, None)


@op_rule("aten::unflatten")
def unflatten(c: RuleContext, x: Any, dim: int, sizes: Any) -> Terms:
    out = viewed(c, x, c.out_shape, None)
    axis = c.axis(dim, len(c.terms(x)))
    c.resize("sizes", out[axis : axis + len(sizes)])
    return out


@op_rule("aten::permute")
def permute(c: RuleContext, x: Any, dims: Sequence[int]) -> Terms:
    terms = c.terms(x)
    return [terms[d] for d in dims]


@op_rule("aten::transpose", "aten::swapaxes", "aten::swapdims")
def transpose(c: RuleContext, x: Any, dim0: Any, dim1: Any, axis0: Any, axis1: Any) -> Terms:
    terms = c.terms(x)
    i, j = (dim0, dim1) if dim0 is not None else (axis0, axis1)
    if terms:
        terms[i], terms[j] = terms[j], terms[i]
    return terms


@op_rule("aten::t", "aten::numpy_T", "aten::mT", "aten::matrix_H", "aten::adjoint", "aten::mH")
def t(c: RuleContext, x: Any) -> Terms:
    terms = c.terms(x)
    if c.op == "numpy_T" or len(terms) < 3:
        return terms[::-1]
    return [*terms[:-2], terms[-1], terms[-2]]


@op_rule("aten::movedim", "aten::moveaxis")
def movedim(c: RuleContext, x: Any, source: Any, destination: Any) -> Terms:
    terms = c.terms(x)
    rank = len(terms)
    src = [c.axis(d, rank) for d in (source if isinstance(source, (list, tuple)) else [source])]
    dst = [
        c.axis(d, rank)
        for d in (destination if isinstance(destination, (list, tuple)) else [destination])
    ]
    order = [d for d in range(rank) if d not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return [terms[d] for d in order]


@op_rule("aten::unsqueeze")
def unsqueeze(c: RuleContext, x: Any, dim: int) -> Terms:
    terms = c.terms(x)
    terms.insert(c.axis(dim, len(terms) + 1), UNIT)
    return terms


@op_rule("aten::squeeze")
def squeeze(c: RuleContext, x: Any, dim: Any) -> Terms:
    terms = c.terms(x)
    shape = c.shape(x)
    if dim is None:
        gone = [i for i, s in enumerate(shape) if s == 1]
        if len(gone) < len(shape):  # a pruned axis may become 1 and must not vanish
            c.on_rewrite(lambda rw: _squeeze_explicitly(rw, gone))
    else:
        dims = [c.axis(d, len(terms)) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
        gone = [d for d in dims if shape[d] == 1]
        if len(gone) != len(dims):
            c.on_rewrite(lambda rw: _squeeze_explicitly(rw, gone))
    return [term for i, term in enumerate(terms) if i not in gone]


def _squeeze_explicitly(rw: NodeRewriter, dims: list[int]) -> None:
    rw.node.target = torch.ops.aten.squeeze.dims
    rw.node.args = (rw.node.args[0], dims)
    rw.node.kwargs = {}


@op_rule("aten::expand", "aten::broadcast_to")
def expand(c: RuleContext, x: Any) -> Terms:
    terms = c.terms(x)
    shape = c.out_shape
    out: Terms = []
    for axis, size in enumerate(shape):
        i = axis - (len(shape) - len(terms))
        if i >= 0 and resolve(terms[i]).size == size:
            out.append(terms[i])
        elif size is None:
            out.append(c.fixed(size, "repeated along a data-dependent axis"))
        else:  # a dynamic size may hold a width, as batch x heads does
            out.append(c.var(size))
            if not c.symbolic(axis):
                c.role(out[-1], "repeat")
    c.resize("size", out)
    return out


@op_rule("aten::expand_as")
def expand_as(c: RuleContext, x: Any, other: Any) -> Terms:
    terms, target = c.terms(x), c.terms(other)
    for a, b in zip(reversed(terms), reversed(target), strict=False):
        if resolve(a).size != 1:
            c.unify(a, b)
    return target


@op_rule("aten::repeat", "aten::tile")
def repeat(c: RuleContext, x: Any, repeats: Any, dims: Any) -> Terms:
    counts = list(repeats if repeats is not None else dims)
    terms = c.terms(x)
    rank = max(len(counts), len(terms))
    terms = [UNIT] * (rank - len(terms)) + terms
    padded = [1] * (rank - len(counts)) + counts
    out: Terms = []
    factors: Terms = []
    for axis, (term, count) in enumerate(zip(terms, padded, strict=True)):
        tiles = _tile(c, term, count, c.out_shape[axis])
        factors.append(tiles)
        out.append(_join(c, tiles, term, axis))
    c.resize("repeats" if repeats is not None else "dims", factors[rank - len(counts) :])
    return out


def _tile(c: RuleContext, term: Term, count: Any, size: int | None) -> Term:
    if isinstance(count, int):
        tiles = c.var(count)
        c.role(tiles, "repeat")
        return tiles
    own = resolve(term).size
    if not size or not own:
        return c.fixed(None, "repeated a data-dependent number of times")
    return c.var(size // own)


def _join(c: RuleContext, outer: Term, inner: Term, axis: int) -> Term:
    joined = product((outer, inner))
    if joined.size != c.out_shape[axis]:
        c.block(inner, "repeated an unknown number of times")
        return c.fixed(c.out_shape[axis])
    return joined


@op_rule("aten::repeat_interleave")
def repeat_interleave(c: RuleContext, x: Any, repeats: Any, dim: Any) -> Terms:
    terms = c.terms(x)
    if not isinstance(repeats, int) or (dim is None and len(terms) != 1):
        c.block_all(x, "repeat_interleave by a tensor")
        return [c.fixed(s) for s in c.out_shape]
    axis = c.axis(dim or 0, len(terms))
    tiles = _tile(c, terms[axis], repeats, c.out_shape[axis])
    terms[axis] = _join(c, terms[axis], tiles, axis)
    c.resize_scalar("repeats", tiles)
    whole = terms[axis]
    c.on_rewrite(lambda rw: _set_output_size(rw, whole))
    return terms


def _set_output_size(rw: NodeRewriter, term: Term) -> None:
    if rw.changed(term) and isinstance(rw.get("output_size"), int):
        rw.set("output_size", rw.size(term))


@op_rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(c: RuleContext, tensors: Any, dim: Any) -> Terms:
    parts = [c.terms(x) for x in tensors if c.shape(x) != [0]]  # legacy: empty 1-d ones are ignored
    return _joined(c, parts, c.axis(dim or 0, len(c.out_shape)))


def _joined(c: RuleContext, parts: list[Terms], axis: int) -> Terms:
    first = list(parts[0])
    for terms in parts[1:]:
        for i, (a, b) in enumerate(zip(first, terms, strict=True)):
            if i != axis:
                c.unify(a, b)
    first[axis] = concat([terms[axis] for terms in parts])
    return first


@op_rule("aten::hstack", "aten::vstack", "aten::row_stack", "aten::dstack", "aten::column_stack")
def joined_by_name(c: RuleContext, tensors: Any) -> Terms:
    """As cat along axis 1 (0 of vectors), 0 and 2; a vector is a row, in column_stack a column."""
    parts = [c.terms(x) for x in tensors]
    if c.op == "hstack":
        return _joined(c, parts, min(1, len(parts[0]) - 1))
    if c.op == "column_stack":
        return _joined(c, [[*t, UNIT] if len(t) == 1 else t for t in parts], 1)
    parts = [[UNIT, *t] if len(t) == 1 else t for t in parts]
    if c.op == "dstack":
        return _joined(c, [[*t, UNIT] if len(t) == 2 else t for t in parts], 2)
    return _joined(c, parts, 0)


@op_rule("aten::stack")
def stack(c: RuleContext, tensors: Any, dim: Any) -> Terms:
    first = c.terms(tensors[0])
    for x in tensors[1:]:
        for a, b in zip(first, c.terms(x), strict=True):
            c.unify(a, b)
    first.insert(c.axis(dim or 0, len(first) + 1), c.fixed(len(tensors), "stacked"))
    return first


def _cut_axis(
    c: RuleContext, x: Any, dim: int, sizes: Sequence[int | None], symbolic: bool
) -> tuple[Terms, ...]:
    terms = c.terms(x)
    axis = c.axis(dim, len(terms))
    known = [s for s in sizes if s is not None]
    if symbolic or len(known) != len(sizes):
        c.block(terms[axis], "cut at a point not known at capture")
        pieces: list[Term] = [c.fixed(s) for s in sizes]
    else:
        pieces = cut(terms[axis], known, c.reason("cut inside a product"))
    return tuple([*terms[:axis], piece, *terms[axis + 1 :]] for piece in pieces)


def _split_sizes(c: RuleContext, axis: int) -> list[int | None]:
    return [shape_of(v)[axis] for v in c.value]


@op_rule(
    "aten::split",
    "aten::split_with_sizes",
    "aten::chunk",
    "aten::tensor_split",
    "aten::unsafe_split",
    "aten::unsafe_chunk",
    "aten::unsafe_split_with_sizes",
)
def split(c: RuleContext, x: Any, dim: Any) -> tuple[Terms, ...]:
    axis = c.axis(dim or 0, len(c.terms(x)))
    results = _cut_axis(c, x, axis, _split_sizes(c, axis), symbolic=_is_symbolic(x, axis))
    pieces = [terms[axis] for terms in results]

    def rewrite(rw: NodeRewriter) -> None:
        if any(map(rw.changed, pieces)):
            rw.node.target = torch.ops.aten.split_with_sizes.default
            rw.node.args = (rw.node.args[0], [rw.size(p) for p in pieces], axis)
            rw.node.kwargs = {}

    c.on_rewrite(rewrite)
    return results


@op_rule("aten::hsplit", "aten::vsplit", "aten::dsplit")
def split_by_name(c: RuleContext, x: Any) -> tuple[Terms, ...]:
    axis = {"hsplit": min(1, len(c.terms(x)) - 1), "vsplit": 0, "dsplit": 2}[c.op]
    return split(c, x, axis)


def _is_symbolic(x: fx.Node, axis: int) -> bool:
    return is_symbolic(x.meta["val"].shape[axis])


@op_rule("aten::slice", "aten::narrow")
def slice_(c: RuleContext, x: Any, dim: Any, start: Any, end: Any, step: Any, length: Any) -> Terms:
    terms = c.terms(x)
    axis = c.axis(dim or 0, len(terms))
    term = resolve(terms[axis])
    size, out = term.size, c.out_shape[axis]
    if not start and length is None and step in (None, 1) and end in (None, sys.maxsize):
        return terms
    if size is not None and out == size and not _is_symbolic(x, axis):
        if isinstance(end, int) and end < sys.maxsize:
            c.on_rewrite(lambda rw: _open_end(rw, term))
        elif isinstance(length, int):
            c.on_rewrite(lambda rw: _whole_length(rw, term))
        return terms
    literal = all(isinstance(v, int) or v is None for v in (start, end, length, step))
    if not literal or _is_symbolic(x, axis) or size is None or out is None:
        c.block(terms[axis], "sliced at a point not known at capture")
        terms[axis] = c.fixed(out)
        return terms
    first = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    if step not in (None, 1):
        terms[axis] = _strided(c, term, first, step, out)
        return terms
    sizes = [first, out, size - first - out]
    before, piece, after = cut(term, sizes, c.reason("cut inside a product"))
    terms[axis] = piece
    c.on_rewrite(lambda rw: _move_slice(rw, before, piece, after))
    return terms


def _open_end(rw: NodeRewriter, term: Term, start: int = 0) -> None:
    if rw.changed(term):
        rw.set("start", start)
        rw.set("end", sys.maxsize)


def _whole_length(rw: NodeRewriter, term: Term) -> None:
    if rw.changed(term):
        rw.set("start", 0)
        rw.set("length", rw.size(term))


def _move_slice(rw: NodeRewriter, before: Term, piece: Term, after: Term) -> None:
    if not any(map(rw.changed, (before, piece, after))):  # bounds may count from the end
        return
    start = rw.size(before)
    rw.set("start", start)
    if isinstance(rw.get("length"), int):
        rw.set("length", rw.size(piece))
    else:
        rw.set("end", start + rw.size(piece))


def _strided(c: RuleContext, term: Term, first: int, step: int, out: int) -> Term:
    """x[first::step] takes one entry of every `step`: the axis is (size/step, step)."""
    pair = None
    if known_size(term) == out * step and first < step:
        pair = factor(term, out)
    if pair is None:
        c.block(term, "strided slice")
        return c.fixed(out)
    c.block(pair[1], "strided slice")
    c.on_rewrite(lambda rw: _open_end(rw, pair[0], first))
    return pair[0]


@op_rule("aten::select")
def select(c: RuleContext, x: Any, dim: int) -> Terms:
    terms = c.terms(x)
    c.block(terms.pop(c.axis(dim, len(terms))), "one entry of it is selected")
    return terms


@op_rule("aten::unbind")
def unbind(c: RuleContext, x: Any, dim: Any) -> tuple[Terms, ...]:
    terms = c.terms(x)
    c.block(terms.pop(c.axis(dim or 0, len(terms))), "its entries are used one by one")
    return tuple(list(terms) for _ in c.value)


@op_rule("aten::pad", "aten::constant_pad_nd")
def pad(c: RuleContext, x: Any, pad: Any, mode: Any) -> Terms:
    terms = c.terms(x)
    for i in range(len(pad) // 2):
        axis = len(terms) - 1 - i
        low, high = pad[2 * i], pad[2 * i + 1]
        if low == 0 and high == 0:
            continue
        if mode in (None, "constant") and all(isinstance(v, int) and v >= 0 for v in (low, high)):
            terms[axis] = concat([c.fixed(low, "padding"), terms[axis], c.fixed(high, "padding")])
        else:
            c.block(terms[axis], "padded")
            terms[axis] = c.fixed(c.out_shape[axis])
    return terms


@op_rule("aten::roll", "aten::flip")
def roll(c: RuleContext, x: Any, dims: Any) -> Terms:
    terms = c.terms(x)
    for d in dims or range(len(terms)):
        c.block(terms[d], "rolled or flipped")
    return terms


@op_rule("aten::tril", "aten::triu")
def triangle(c: RuleContext, x: Any) -> Terms:
    terms = c.terms(x)
    for term in terms[-2:]:
        c.block(term, "triangular mask")
    return terms


@op_rule("aten::channel_shuffle")
def channel_shuffle(c: RuleContext, x: Any, groups: int) -> Terms:
    terms = c.terms(x)
    pair = factor(terms[1], groups)
    if pair is None:
        c.block(terms[1], "channel shuffle cuts across it")
        return terms
    terms[1] = product((pair[1], pair[0]))
    c.resize_scalar("groups", pair[0])
    return terms


@op_rule("aten::unfold")
def unfold(c: RuleContext, x: Any, dimension: int, size: int) -> Terms:
    terms = c.terms(x)
    axis = c.axis(dimension, len(terms))
    c.block(terms[axis], "sliding window")
    terms[axis] = Fixed(c.out_shape[axis], c.reason("sliding window"))
    return [*terms, c.fixed(size, "sliding window")]


@op_rule("aten::meshgrid")
def meshgrid(c: RuleContext, tensors: Any, indexing: Any) -> tuple[Terms, ...]:
    axes = [c.terms(x)[0] if c.terms(x) else UNIT for x in tensors]
    if indexing == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return tuple(list(axes) for _ in c.value)


@op_rule("aten::diagonal")
def diagonal(c: RuleContext, x: Any, dim1: int, dim2: int) -> Terms:
    terms = c.terms(x)
    gone = {c.axis(dim1 or 0, len(terms)), c.axis(1 if dim2 is None else dim2, len(terms))}
    for axis in gone:
        c.block(terms[axis], "diagonal")
    return [t for i, t in enumerate(terms) if i not in gone] + [c.fixed(c.out_shape[-1])]
