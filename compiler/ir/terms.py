"""The algebra of dimension terms: terms are equated by unification, cut and factored.

Binding a `Var` is destructive, and a pair that cannot be made equal is *fixed* on both sides. So a
failure costs compression, never correctness.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from .normal_form import (
    UNIT,
    Concat,
    Fixed,
    Indexed,
    Product,
    Reason,
    Term,
    Var,
    children,
    concat,
    fresh,
    indexed,
    known_size,
    leaves,
    product,
    resolve,
    same,
    variables,
)

__all__ = [
    "UNIT",
    "Concat",
    "Fixed",
    "Indexed",
    "Product",
    "Reason",
    "Term",
    "Var",
    "block",
    "children",
    "concat",
    "cut",
    "factor",
    "fresh",
    "indexed",
    "known_size",
    "leaves",
    "product",
    "resolve",
    "same",
    "take",
    "unify",
    "variables",
]


def block(term: Term, reason: Reason) -> None:
    """Fix every variable of a term, with the reason people are shown."""
    for var in variables(term):
        var.binding = Fixed(var.size, reason)


def unify(a: Term, b: Term, reason: Reason) -> None:
    """Make two terms equal; what cannot be made equal is fixed on both sides for `reason`."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if isinstance(b, Fixed) and not isinstance(a, Fixed):
        a, b = b, a
    if isinstance(a, Fixed):
        block(b, a.reason if a.size == b.size else reason)
    elif a.size != b.size:
        block(a, reason)
        block(b, reason)
    elif isinstance(a, Var) or isinstance(b, Var):
        _bind(a, b, reason)
    elif isinstance(a, Indexed) or isinstance(b, Indexed):
        _unify_indexed(a, b, reason)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_products(list(a.factors), list(b.factors), reason)
    elif isinstance(a, Concat) and isinstance(b, Concat):
        _unify_concats(list(a.parts), list(b.parts), reason)
    else:
        whole, pieces = (a, b) if isinstance(b, Concat) else (b, a)
        assert isinstance(whole, Product)
        assert isinstance(pieces, Concat)
        _distribute(whole, pieces, reason)


def _distribute(whole: Product, pieces: Concat, reason: Reason) -> None:
    """The distributive law: (a + b) * c = a * c + b * c. The product is cut where the parts end at
    a multiple of its inner size, taken as large as it may be; between those it is left whole."""
    for k in range(1, len(whole.factors)):
        inner = known_size(product(whole.factors[k:]))
        groups: list[list[Term]] = [[]]
        offset = 0
        for part in pieces.parts:
            groups[-1].append(part)
            offset += known_size(part)
            if inner and offset % inner == 0 and offset < whole.size:
                groups.append([])
        if len(groups) > 1:
            joined = [concat(group) for group in groups]
            cuts = cut(whole, [known_size(g) for g in joined], reason)
            for piece, group in zip(cuts, joined, strict=True):
                unify(piece, group, reason)
            return
    block(whole, reason)
    block(pieces, reason)


def _bind(a: Term, b: Term, reason: Reason) -> None:
    if isinstance(a, Var) and isinstance(b, Var):
        old, new = sorted((a, b), key=lambda v: v.serial)
        new.binding = old
        return
    var, other = (a, b) if isinstance(a, Var) else (b, a)
    assert isinstance(var, Var)
    if var in variables(other):
        block(other, reason)
        block(var, reason)
    else:
        var.binding = other


def _unify_indexed(a: Term, b: Term, reason: Reason) -> None:
    """Equal selections of equal bases; a permuted variable takes the other side's order; parts that
    lie one after the other are compared one by one. What is left is fixed."""
    if isinstance(a, Indexed) and isinstance(b, Indexed) and a.index == b.index:
        if a.base.size == b.base.size:
            unify(a.base, b.base, reason)
            return
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Indexed) and isinstance(one.base, Var):
            if sorted(one.index) == list(range(one.base.size)):
                back = sorted(range(one.size), key=one.index.__getitem__)
                unify(one.base, indexed(other, back), reason)
                return
        if isinstance(one, Indexed) and isinstance(other, Concat):
            pieces = cut(one, [known_size(p) for p in other.parts], reason)
            for piece, part in zip(pieces, other.parts, strict=True):
                unify(piece, part, reason)
            return
    block(a, reason)
    block(b, reason)


def _unify_products(left: list[Term], right: list[Term], reason: Reason) -> None:
    while left and right:
        a, b = resolve(left.pop(0)), resolve(right.pop(0))
        if isinstance(a, Product) or isinstance(b, Product):  # bound while walking
            left[:0] = a.factors if isinstance(a, Product) else (a,)
            right[:0] = b.factors if isinstance(b, Product) else (b,)
            continue
        m, n = known_size(a), known_size(b)
        if m == n:
            unify(a, b, reason)
            continue
        longer, rest, shorter, k = (a, left, b, n) if m > n else (b, right, a, m)
        pair = factor(longer, k) if k and known_size(longer) % k == 0 else None
        if pair is None:
            for term in (a, b, *left, *right):
                block(term, reason)
            return
        unify(pair[0], shorter, reason)
        rest.insert(0, pair[1])
    for term in (*left, *right):
        block(term, reason)


def _unify_concats(left: list[Term], right: list[Term], reason: Reason) -> None:
    while left and right:
        a, b = resolve(left.pop(0)), resolve(right.pop(0))
        if isinstance(a, Concat) or isinstance(b, Concat):  # bound while walking
            left[:0] = a.parts if isinstance(a, Concat) else (a,)
            right[:0] = b.parts if isinstance(b, Concat) else (b,)
            continue
        m, n = known_size(a), known_size(b)
        if m != n:
            longer, others, size, own = (a, right, m, left) if m > n else (b, left, n, right)
            shorter = _gathered(b if m > n else a, others, size, isinstance(longer, Product))
            k = known_size(shorter)
            if k < size:
                longer, rest = cut(longer, [k, size - k], reason)
                own.insert(0, rest)
            a, b = longer, shorter
        unify(a, b, reason)


def _gathered(first: Term, others: list[Term], size: int, product_ahead: bool) -> Term:
    """The parts that make up `size`, when a product stands against them and they end where it
    does; the first part alone otherwise."""
    taken, total = 0, known_size(first)
    while product_ahead and total < size and taken < len(others):
        total += known_size(others[taken])
        taken += 1
    if total != size:
        return first
    group = [first, *others[:taken]]
    del others[:taken]
    return concat(group)


def factor(term: Term, outer: int) -> tuple[Term, Term] | None:
    """Split a term as outer x inner (row-major), or None when its structure does not allow it.

    `outer` is the size of the first; it must divide the size of the term.
    """
    term = resolve(term)
    size = term.size
    if size is None or outer <= 0 or size % outer:
        return None
    inner = size // outer
    if outer == 1:
        return UNIT, term
    if inner == 1:
        return term, UNIT
    if isinstance(term, Fixed):
        return Fixed(outer, term.reason), Fixed(inner, term.reason)
    if isinstance(term, Var):
        pair = fresh(outer), fresh(inner)
        term.binding = Product(pair)
        return pair
    if isinstance(term, Product):
        return _factor_product(list(term.factors), outer)
    if isinstance(term, Indexed):
        return _factor_indexed(term, outer, inner)
    if any(known_size(p) % inner for p in term.parts):
        return None
    pairs = [factor(p, known_size(p) // inner) for p in term.parts]
    whole = [p for p in pairs if p is not None]
    if len(whole) < len(pairs):
        return None
    for _, piece in whole[1:]:
        unify(whole[0][1], piece, Reason("the parts of a concatenation are viewed alike"))
    return concat([p[0] for p in whole]), resolve(whole[0][1])


def _factor_product(factors: list[Term], outer: int) -> tuple[Term, Term] | None:
    taken: list[Term] = []
    while outer > 1:
        head = factors.pop(0)
        size = known_size(head)
        if outer % size == 0:
            taken.append(head)
            outer //= size
        elif size % outer == 0 and (pair := factor(head, outer)) is not None:
            taken.append(pair[0])
            factors.insert(0, pair[1])
            outer = 1
        else:
            return None
    return product(taken), product(factors)


def _factor_indexed(term: Indexed, outer: int, inner: int) -> tuple[Term, Term] | None:
    """Whole blocks in another order: (the blocks, reordered) x (a block)."""
    index = term.index
    blocks = [index[i * inner] // inner for i in range(outer)]
    if list(index) != [b * inner + i for b in blocks for i in range(inner)]:
        return None
    size = known_size(term.base)
    pair = factor(term.base, size // inner) if size % inner == 0 else None
    return None if pair is None else (take(pair[0], blocks, UNIT.reason), pair[1])


def take(base: Term, index: Sequence[int], reason: Reason) -> Term:
    """The entries base[index], of which one always stays: else what reads them would be empty."""
    if not _stays(base, set(index)):
        _keep_one(base, sorted(set(index)), reason)
    return indexed(base, index)


def _stays(term: Term, chosen: set[int]) -> bool:
    """Whether one of the chosen entries is there whatever is removed."""
    term = resolve(term)
    if isinstance(term, Fixed) or len(chosen) == term.size:
        return bool(chosen)
    if isinstance(term, Indexed):
        return _stays(term.base, {term.index[i] for i in chosen})
    return isinstance(term, Concat) and any(_stays(p, set(own)) for p, own in _shares(term, chosen))


def _shares(term: Concat, chosen: Collection[int]) -> Iterator[tuple[Term, list[int]]]:
    """The parts of a concatenation that hold chosen entries, with those entries in their terms."""
    offset = 0
    for part in term.parts:
        size = known_size(part)
        own = sorted(i - offset for i in chosen if offset <= i < offset + size)
        offset += size
        if own:
            yield part, own


def _keep_one(term: Term, chosen: Sequence[int], reason: Reason) -> None:
    """Fix one of the chosen entries: the first or last of its variable where that is among them, so
    that what is left of the variable stays whole."""
    term = resolve(term)
    size = known_size(term)
    if isinstance(term, Var):
        k = next((k for k in (0, size - 1) if k in chosen), chosen[0])
        cut(term, [k, 1, size - k - 1], reason)  # an axis of size 1 is fixed
    elif isinstance(term, Concat):
        shares = list(_shares(term, chosen))
        ends = [s for s in shares if {0, known_size(s[0]) - 1} & set(s[1])]
        _keep_one(*(ends or shares)[0], reason)
    elif isinstance(term, Indexed):
        _keep_one(term.base, sorted(term.index[i] for i in chosen), reason)
    elif isinstance(term, Product):
        k = chosen[0]
        for f in reversed(term.factors):
            _keep_one(f, [k % known_size(f)], reason)
            k //= known_size(f)


def cut(term: Term, sizes: Sequence[int], reason: Reason) -> list[Term]:
    """Cut a term into consecutive pieces of the given sizes (their sum is the term's size).

    A cut inside a product is possible at multiples of its inner size only; otherwise the term is
    fixed and the pieces are fixed extents.
    """
    term = resolve(term)
    if sum(sizes) != term.size:
        block(term, reason)
        return [Fixed(s, reason) for s in sizes]
    nonzero = [s for s in sizes if s]
    if len(nonzero) <= 1:
        pieces: list[Term] = [term] * len(nonzero)
    elif isinstance(term, Fixed):
        pieces = [Fixed(s, term.reason) for s in nonzero]
    elif isinstance(term, Var):
        pieces = [fresh(s) for s in nonzero]
        term.binding = Concat(tuple(pieces))
    elif isinstance(term, Concat):
        pieces = _cut_concat(list(term.parts), nonzero, reason)
    elif isinstance(term, Indexed):
        ends = list(itertools.accumulate(nonzero, initial=0))
        pieces = [take(term.base, term.index[i:j], reason) for i, j in itertools.pairwise(ends)]
    else:
        pieces = _cut_product(term, nonzero, reason)
    supply = iter(pieces)
    return [next(supply) if s else Fixed(0, reason) for s in sizes]


def _cut_concat(parts: list[Term], sizes: Sequence[int], reason: Reason) -> list[Term]:
    pieces: list[Term] = []
    for size in sizes:
        taken: list[Term] = []
        while size:
            head = parts.pop(0)
            if known_size(head) > size:
                head, rest = cut(head, [size, known_size(head) - size], reason)
                parts.insert(0, rest)
            taken.append(head)
            size -= known_size(head)
        pieces.append(concat(taken))
    return pieces


def _cut_product(term: Product, sizes: Sequence[int], reason: Reason) -> list[Term]:
    for k in range(1, len(term.factors)):
        inner = product(term.factors[k:])
        n = known_size(inner)
        if n and all(s % n == 0 for s in sizes):
            outer = cut(product(term.factors[:k]), [s // n for s in sizes], reason)
            return [product((piece, inner)) for piece in outer]
    block(term, reason)
    return [Fixed(s, reason) for s in sizes]
