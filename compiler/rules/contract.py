"""Contractions of two operands: linear, matmul in its spellings, einsum, embedding lookup."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..inference.rule import RuleContext, Terms, op_rule
from ..ir.terms import UNIT, Term, resolve


@op_rule("aten::linear")
def linear(c: RuleContext, x: Any, weight: Any, bias: Any) -> Terms:
    terms, w = c.terms(x), c.terms(weight)
    c.unify(terms[-1], w[-1])
    out = [*terms[:-1], *w[:-1]]
    if c.terms(bias):
        c.unify(c.terms(bias)[0], w[0])
    c.contract(w[-1], [(x, len(terms) - 1), (weight, len(w) - 1)], out, weight)
    for term in w[:-1]:
        c.role(term, "hidden")
    return out


def contract_matrices(c: RuleContext, a: fx.Node, b: fx.Node, bias: Any = None) -> Terms:
    """a [..., m, k] times b [..., k, n] with batch axes broadcast, 1-d operands as torch.matmul."""
    s, t = c.terms(a), c.terms(b)
    left, right = len(s) > 1, len(t) > 1
    k_left, k_right = s[-1], t[-2] if right else t[-1]
    c.unify(k_left, k_right)
    batch = _batch(c, s[:-2] if left else [], t[:-2] if right else [])
    out = batch + ([s[-2]] if left else []) + ([t[-1]] if right else [])
    operands = [(a, len(s) - 1), (b, len(t) - 2 if right else len(t) - 1)]
    live = [x for x in (a, b) if c.is_activation(x)]
    weight = None if len(live) != 1 else (b if live[0] is a else a)
    c.contract(k_left, operands, out, weight)
    if not c.is_weight(a) and not c.is_weight(b):
        c.paired(k_left, [s[-2]] if left else [], [t[-1]] if right else [], batch)
    elif c.is_weight(b) and right:
        c.role(t[-1], "hidden")
    elif c.is_weight(a) and left:
        c.role(s[-2], "hidden")
    if len(live) == 1:
        for term in (s if weight is a else t)[:-2]:
            c.role(term, "group")
    if bias is not None and c.terms(bias):
        bias_terms = c.terms(bias)
        for own, term in zip(reversed(bias_terms), reversed(out), strict=False):
            if resolve(own).size != 1:
                c.unify(own, term)
    return out


def _batch(c: RuleContext, s: Terms, t: Terms) -> Terms:
    rank = max(len(s), len(t))
    s, t = [UNIT] * (rank - len(s)) + s, [UNIT] * (rank - len(t)) + t
    out: Terms = []
    for p, q in zip(s, t, strict=True):
        if resolve(p).size != 1 and resolve(q).size != 1:
            c.unify(p, q)
        out.append(q if resolve(p).size == 1 else p)
    return out


@op_rule(
    "aten::matmul",
    "aten::mm",
    "aten::bmm",
    "aten::mv",
    "aten::dot",
    "aten::vdot",
    "aten::linalg_matmul",
)
def matmul(c: RuleContext, x: Any, other: Any, mat2: Any, vec: Any, tensor: Any) -> Terms:
    second = next(v for v in (other, mat2, vec, tensor) if v is not None)
    return contract_matrices(c, x, second)


@op_rule("aten::addmm", "aten::baddbmm", "aten::addbmm")
def addmm(c: RuleContext, x: Any, mat1: Any, mat2: Any, batch1: Any, batch2: Any) -> Terms:
    a, b = (mat1, mat2) if mat1 is not None else (batch1, batch2)
    if c.op == "addbmm":
        raise ValueError("addbmm sums over its batch")
    return contract_matrices(c, a, b, bias=x)


@op_rule("aten::addmv")
def addmv(c: RuleContext, x: Any, mat: Any, vec: Any) -> Terms:
    return contract_matrices(c, mat, vec, bias=x)


@op_rule("aten::tensordot", "aten::inner")
def tensordot(c: RuleContext, x: Any, other: Any, dims_self: Any, dims_other: Any) -> Terms:
    s, t = c.terms(x), c.terms(other)
    pairs = [
        (c.axis(i, len(s)), c.axis(j, len(t)))
        for i, j in zip(dims_self or [-1], dims_other or [-1], strict=True)
    ]
    left, right = ({axis for axis in axes} for axes in zip(*pairs, strict=True))
    out = [term for i, term in enumerate(s) if i not in left]
    out += [term for j, term in enumerate(t) if j not in right]
    live = [n for n in (x, other) if c.is_activation(n)]
    weight = None if len(live) != 1 else (other if live[0] is x else x)
    for k, (i, j) in enumerate(pairs):
        c.unify(s[i], t[j])
        rest = [s[later] for later, _ in pairs[k + 1 :]]
        c.contract(s[i], [(x, i), (other, j)], [*out, *rest], weight, counted=k == 0)
    if weight is other:
        for j, term in enumerate(t):
            if j not in right:
                c.role(term, "hidden")
    return out


@op_rule("aten::outer", "aten::ger")
def outer(c: RuleContext, x: Any, vec2: Any) -> Terms:
    return [*c.terms(x), *c.terms(vec2)]


@op_rule("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(c: RuleContext, x: Any, weight: Any, mat2: Any, offs: Any) -> Terms:
    """x [T, K], its rows in groups that end at offs [E], each times its own [K, N] of [E, K, N]."""
    matrices = weight if weight is not None else mat2
    rows, w = c.terms(x), c.terms(matrices)
    if len(rows) != 2 or len(w) != 3:
        raise ValueError("another layout of groups")
    experts = c.addressed(offs, "offsets")
    if experts is None:
        c.block(w[0], "experts are chosen by value")
        c.block_all(offs, "experts are chosen by value")
    else:
        c.unify(w[0], experts)
    c.unify(rows[1], w[1])
    out = [rows[0], w[2]]
    c.contract(w[1], [(x, 1), (matrices, 1)], out, matrices)
    c.role(w[2], "hidden")
    return out


@op_rule("aten::embedding")
def embedding(c: RuleContext, weight: Any, indices: Any) -> Terms:
    rows, *rest = c.terms(weight)
    numbered = c.addressed(indices)
    if numbered is None:
        c.block(rows, "rows of a lookup table")
    else:
        c.unify(rows, numbered)
    for term in rest:
        c.role(term, "hidden")
    return [*c.terms(indices), *rest]


@op_rule("aten::bilinear")
def bilinear(c: RuleContext, input1: Any, input2: Any, weight: Any, bias: Any) -> Terms:
    out, p, q = c.terms(weight)
    s, t = c.terms(input1), c.terms(input2)
    c.unify(s[-1], p)
    c.unify(t[-1], q)
    for a, b in zip(s[:-1], t[:-1], strict=True):
        c.unify(a, b)
    result = [*s[:-1], out]
    if c.terms(bias):
        c.unify(c.terms(bias)[0], out)
    c.contract(p, [(input1, len(s) - 1), (weight, 1)], [*result, q], weight)
    c.contract(q, [(input2, len(t) - 1), (weight, 2)], result, weight, counted=False)
    c.role(out, "hidden")
    return result


@op_rule("aten::einsum")
def einsum(c: RuleContext, equation: str, tensors: Any) -> Terms:
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    specs = left.split(",")
    if "." in equation:
        specs, right = _expand_ellipsis(c, specs, right, tensors)
    if not arrow:
        letters = "".join(specs)
        right = "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    terms: dict[str, Term] = {}
    places: dict[str, list[tuple[fx.Node, int]]] = {}
    for spec, x in zip(specs, tensors, strict=True):
        if len(set(spec)) != len(spec):
            raise ValueError("einsum takes a diagonal")
        for axis, (letter, term) in enumerate(zip(spec, c.terms(x), strict=True)):
            if letter in terms and 1 not in (resolve(terms[letter]).size, resolve(term).size):
                c.unify(terms[letter], term)
            if letter not in terms or resolve(terms[letter]).size == 1:
                terms[letter] = term
            places.setdefault(letter, []).append((x, axis))
    out = [terms[letter] for letter in right]
    weights = [x for x in tensors if not c.is_activation(x)]
    weight = weights[0] if len(weights) == 1 and len(tensors) == 2 else None
    summed = [letter for letter in terms if letter not in right]
    for k, letter in enumerate(summed):
        others = [terms[x] for x in summed[k + 1 :]]
        c.contract(terms[letter], places[letter], [*out, *others], weight, counted=k == 0)
    _einsum_roles(c, terms, places, right)
    return out


def _einsum_roles(
    c: RuleContext, terms: dict[str, Term], places: dict[str, Any], right: str
) -> None:
    """A letter of weights alone is the width of a layer; one that weights and activations keep
    numbers those layers."""
    held = {letter: [x for x, _ in found] for letter, found in places.items()}
    live = list(dict.fromkeys(x for found in held.values() for x in found if not c.is_weight(x)))
    for letter, term in terms.items():
        used = [x for x in held[letter] if c.is_weight(x)]
        if letter in right and used:
            c.role(term, "hidden" if len(used) == len(held[letter]) else "group")
    if len(live) != 2:
        return
    a, b = live
    both = [x for x, found in held.items() if a in found and b in found]
    sums = [x for x in both if x not in right and len(held[x]) == 2]
    kept = [terms[x] for x in both if x not in sums]
    alone = [[terms[x] for x, f in held.items() if y in f and x not in both] for y in live]
    for letter in sums:
        c.paired(terms[letter], alone[0], alone[1], kept)
    for letter in both if not sums else ():
        if letter not in right:  # the results of layers, weighed
            c.role(terms[letter], "expert")


def _expand_ellipsis(
    c: RuleContext, specs: list[str], right: str, tensors: Any
) -> tuple[list[str], str]:
    spare = [x for x in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if x not in "".join(specs) + right]
    widths = [
        len(c.terms(x)) - len(spec.replace("...", ""))
        for spec, x in zip(specs, tensors, strict=True)
        if "..." in spec
    ]
    dots = "".join(spare[: max(widths, default=0)])
    filled: list[str] = []
    for spec, x in zip(specs, tensors, strict=True):
        n = len(c.terms(x)) - len(spec.replace("...", ""))
        filled.append(spec.replace("...", dots[len(dots) - n :] if n else ""))
    return filled, right.replace("...", dots)
