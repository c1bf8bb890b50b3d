"""The algebra of dimension terms: what an axis of a tensor is made of.

A term is a `Var` (one unknown dimension), a `Fixed` extent that may never change, a row-major
`Product` of factors (made by view) or a `Concat` of parts (made by cat, split and slice).
Terms are equated by unification: binding a `Var` is destructive, and a pair that cannot be made
equal is *fixed* on both sides. So a failure costs compression, never correctness.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_serial = itertools.count()


@dataclass(frozen=True)
class Reason:
    """Why a dimension is blocked or norm-coupled: the fact, the node, the user's source line."""

    text: str
    node: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.node, self.source) if part)
        return f"{self.text} ({where})" if where else self.text


class Var:
    """An unknown dimension of `size` entries; equal to its binding once it has one."""

    __slots__ = ("binding", "serial", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.binding: Term | None = None
        self.serial = next(_serial)

    def __repr__(self) -> str:
        return f"v{self.serial}:{self.size}"


@dataclass(frozen=True, eq=False)
class Fixed:
    """An extent that stays as it is. `size` None: not known at capture (data dependent)."""

    size: int | None
    reason: Reason

    def __repr__(self) -> str:
        return f"{self.size}"


@dataclass(frozen=True, eq=False)
class Product:
    """Row-major factors, outermost first: index = (i0 * n1 + i1) * n2 + i2 ..."""

    factors: tuple[Term, ...]

    @property
    def size(self) -> int:
        return math.prod(known_size(f) for f in self.factors)

    def __repr__(self) -> str:
        return "(" + "*".join(map(repr, self.factors)) + ")"


@dataclass(frozen=True, eq=False)
class Concat:
    """Parts one after the other."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(known_size(p) for p in self.parts)

    def __repr__(self) -> str:
        return "[" + "+".join(map(repr, self.parts)) + "]"


Term = Var | Fixed | Product | Concat

UNIT = Fixed(1, Reason("size 1"))
EMPTY = Fixed(0, Reason("empty"))


def fresh(size: int) -> Var | Fixed:
    """A new variable; an axis of size 1 or 0 has nothing to remove and is fixed."""
    return Var(size) if size > 1 else UNIT if size else EMPTY


def known_size(term: Term) -> int:
    """The size of a term; data-dependent extents count as 0, which never aligns with anything."""
    return term.size if term.size is not None else 0


def resolve(term: Term) -> Term:
    """The normal form: bindings followed, nested products and concatenations flattened,
    factors of size 1 dropped, neighbouring fixed extents merged."""
    if isinstance(term, Var):
        if term.binding is None:
            return term
        term.binding = resolve(term.binding)
        return term.binding
    if isinstance(term, Product):
        return product(term.factors)
    if isinstance(term, Concat):
        return concat(term.parts)
    return term


def product(factors: Sequence[Term]) -> Term:
    """The normal form of a product."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        for f in factor.factors if isinstance(factor, Product) else (factor,):
            if f.size == 1 and isinstance(f, Fixed):
                continue
            if flat and isinstance(f, Fixed) and isinstance(flat[-1], Fixed):
                sizes = (flat[-1].size, f.size)
                total = None if None in sizes else math.prod(s for s in sizes if s is not None)
                flat[-1] = Fixed(total, flat[-1].reason)
            else:
                flat.append(f)
    if not flat:
        return UNIT
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(parts: Sequence[Term]) -> Term:
    """The normal form of a concatenation."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        for p in part.parts if isinstance(part, Concat) else (part,):
            if p.size == 0 and isinstance(p, Fixed):
                continue
            if flat and isinstance(p, Fixed) and isinstance(flat[-1], Fixed):
                sizes = (flat[-1].size, p.size)
                total = None if None in sizes else sum(s for s in sizes if s is not None)
                flat[-1] = Fixed(total, flat[-1].reason)
            else:
                flat.append(p)
    if not flat:
        return Fixed(0, UNIT.reason)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def leaves(term: Term) -> Iterator[Var | Fixed]:
    """The variables and fixed extents of a term, in row-major order, with repetition."""
    term = resolve(term)
    if isinstance(term, (Var, Fixed)):
        yield term
    else:
        for child in term.factors if isinstance(term, Product) else term.parts:
            yield from leaves(child)


def variables(term: Term) -> list[Var]:
    """The distinct variables of a term, in order of first occurrence."""
    return list(dict.fromkeys(v for v in leaves(term) if isinstance(v, Var)))


def same(a: Term, b: Term) -> bool:
    """Whether two terms are equal as they stand (fixed extents compare by size)."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return True
    if isinstance(a, Fixed) and isinstance(b, Fixed):
        return a.size == b.size
    if isinstance(a, Product) and isinstance(b, Product):
        return len(a.factors) == len(b.factors) and all(map(same, a.factors, b.factors))
    if isinstance(a, Concat) and isinstance(b, Concat):
        return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))
    return False


def fitted(term: Term, size: int) -> Term:
    """The term of the same axis at another size of its dynamic extent: the first fixed part that
    can make the difference does. Unchanged where none can."""
    term = resolve(term)
    if term.size == size or isinstance(term, Var):
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
