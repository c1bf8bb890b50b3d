"""The kind of each dimension: found from how it is used, not from names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..ir.terms import Product, Term, Var, children, resolve, variables
from .rule import Inference, Pairing

_BY_RANK = ("head-dim", "group", "residual", "channel", "hidden")


def find_kinds(inference: Inference, members: Iterable[Var]) -> dict[Var, str]:
    """The kind of each free variable."""
    roles = _roles(inference, set(members))
    grouped = {v for v, r in roles.items() if {"head", "repeat"} <= r}
    shared = _sharing_product(inference, grouped)
    weighed = {v for sink in inference.sinks if sink.weight for v in variables(sink.term)}
    kinds: dict[Var, str] = {}
    for var in members:
        own = roles[var]
        if var not in weighed:  # a stream is read by weights; sums have token axes too
            own.discard("residual")
        if "expert" in own:
            kind = "expert"
        elif var in grouped:
            kind = "query-group"
        elif "head" in own:
            kind = "kv-head" if var in shared else "head"
        else:
            kind = next((k for k in _BY_RANK if k in own), "other")
        kinds[var] = kind
    return kinds


def _roles(inference: Inference, free: set[Var]) -> dict[Var, set[str]]:
    roles: dict[Var, set[str]] = defaultdict(set)
    for term, role in inference.roles:
        for var in _innermost(term) if role == "head-dim" else variables(term):
            roles[var].add(role)
    for pair in inference.pairings:
        if _mixes(pair, free):
            for var in variables(pair.summed):
                if roles[var] & {"share", "group"}:
                    roles[var].add("expert")
            continue
        for term in pair.batch:
            for var in variables(term):
                roles[var].add("head")
        for term in (pair.summed, *pair.left, *pair.right):
            for var in _innermost(term):
                roles[var].add("head-dim")
    return roles


def _mixes(pair: Pairing, free: set[Var]) -> bool:
    """Whether one side weighs the other's features, each token by itself: shares of experts, or a
    layer whose weights were computed. Attention compares tokens, head by head."""

    def has_features(terms: Iterable[Term]) -> bool:
        return any(v in free for term in terms for v in variables(term))

    plain = [all(resolve(t).size == 1 for t in side) for side in (pair.left, pair.right)]
    weighed = (plain[0] and has_features(pair.right)) or (plain[1] and has_features(pair.left))
    return weighed and has_features((pair.summed,)) and not has_features(pair.batch)


def _innermost(term: Term) -> list[Var]:
    """The variables of a head width; for a product (heads x width, pairs x 2) those of its last
    factor that has any."""
    term = resolve(term)
    factors = term.factors if isinstance(term, Product) else (term,)
    return next((found for f in reversed(factors) if (found := variables(f))), [])


def products(inference: Inference) -> Iterable[Product]:
    """All products in the terms of the tensors."""

    def walk(term: Term) -> Iterable[Product]:
        term = resolve(term)
        if isinstance(term, Product):
            yield term
        for child in children(term):
            yield from walk(child)

    for terms in inference.tensors.values():
        for term in terms:
            yield from walk(term)


def _sharing_product(inference: Inference, chosen: set[Var]) -> set[Var]:
    """Variables that stand just outside one of the chosen ones in a product (kv heads)."""
    found: set[Var] = set()
    for p in products(inference):
        for outer, inner in zip(p.factors, p.factors[1:], strict=False):
            if set(variables(inner)) & chosen:
                found.update(set(variables(outer)) - chosen)
    return found
