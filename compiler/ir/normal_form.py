"""Dimension terms and their normal form: what an axis of a tensor is made of.

A term is a `Var` (one unknown dimension), a `Fixed` extent that may never change, a row-major
`Product` of factors (made by view), a `Concat` of parts (made by cat, split and slice) or entries
`Indexed` from a base (made by a selection whose indices are known).
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


@dataclass(frozen=True, eq=False)
class Indexed:
    """Entries taken from a base: entry i is entry index[i] of the base, gone when that one goes."""

    base: Term
    index: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"{self.base!r}@{self.size}"


Term = Var | Fixed | Product | Concat | Indexed

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
    return indexed(term.base, term.index) if isinstance(term, Indexed) else term


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
                flat[-1] = Fixed(total, _why_fixed(flat[-1], p))
            else:
                flat.append(p)
    if not flat:
        return Fixed(0, UNIT.reason)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def _why_fixed(a: Fixed, b: Fixed) -> Reason:
    """Of two neighbours: to be a single entry is no reason beside another one."""
    reasons = [r for r in (a.reason, b.reason) if r != UNIT.reason]
    return reasons[0] if reasons else Reason("cut into single entries")


def indexed(base: Term, index: Sequence[int]) -> Term:
    """The normal form of a selection: one level deep, of the parts that it takes entries from."""
    base = resolve(base)
    if isinstance(base, Indexed):
        base, index = base.base, [base.index[i] for i in index]
    if all(isinstance(leaf, Fixed) for leaf in leaves(base)):
        return Fixed(len(index), next(leaves(base)).reason)  # type: ignore[union-attr]
    if isinstance(base, Concat):
        parts: list[Term] = []
        moved: dict[int, int] = {}
        taken = set(index)
        offset = 0
        for part in base.parts:
            own = [i for i in range(known_size(part)) if offset + i in taken]
            inner = part.index if isinstance(part, Indexed) else range(known_size(part))
            start = sum(map(known_size, parts))
            moved.update((offset + i, start + inner[i]) for i in own)
            offset += known_size(part)
            if own:
                parts.append(part.base if isinstance(part, Indexed) else part)
        base, index = concat(parts), [moved[i] for i in index]
    if list(index) == list(range(known_size(base))):
        return base
    return Indexed(base, tuple(index))


def children(term: Term) -> tuple[Term, ...]:
    """The terms that a term in normal form is made of."""
    if isinstance(term, Product):
        return term.factors
    if isinstance(term, Concat):
        return term.parts
    return (term.base,) if isinstance(term, Indexed) else ()


def leaves(term: Term) -> Iterator[Var | Fixed]:
    """The variables and fixed extents of a term, in row-major order, with repetition."""
    term = resolve(term)
    if isinstance(term, (Var, Fixed)):
        yield term
    for child in children(term):
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
    if isinstance(a, Indexed) and isinstance(b, Indexed):
        return a.index == b.index and same(a.base, b.base)
    return False
