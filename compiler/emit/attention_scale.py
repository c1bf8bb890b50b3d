"""Scales that attention derives from its head width, kept when the heads get narrower.

A module that divides by sqrt(head_dim) at run time divides by less once the heads are narrower,
while the model's function keeps the old scale. So sqrt(new / old) goes into the query projection,
and the graph, which shares its weights, takes the new scale too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from ..inference.dimensions import width_of
from ..inference.graph import Graph
from ..inference.rule import bound_arguments, op_name
from ..ir.program import Program
from ..ir.terms import Var, resolve
from .baked_sizes import Decision
from .leaf_modules import innermost
from .push_factor import CannotPush, FactorPush
from .replay import scaled

_COMBINATIONS = 16
_MULTIPLES = (1, 2, 3, 4)  # DeBERTa's scale is sqrt(3 * width)


@dataclasses.dataclass(frozen=True)
class ScaleSite:
    """A node of the dense graph that scales by its head width: once its own scale is `scale`, it
    must see one of `values` times `factor`."""

    node: fx.Node
    values: tuple[fx.Node, ...]
    factor: float
    scale: float
    sure: bool


@dataclasses.dataclass(frozen=True)
class ScaleDecision(Decision):
    """Whether the attentions of one class derive their scale: then their weights change."""

    sites: tuple[ScaleSite, ...] = ()
    factors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    weights: dict[str, nn.Parameter] = dataclasses.field(default_factory=dict)


def scale_decisions(
    graph: Graph, dense: Program, sizes: dict[Var, int], module: nn.Module
) -> list[ScaleDecision]:
    """One decision per class of module with scales that may be derived from a width that changed.
    `sizes`: the new size of each variable; `module`: a copy that holds the dense tensors."""
    widths = _contracted(graph, sizes)
    if not widths:
        return []
    push: FactorPush | None = None
    modules = dict(module.named_modules(remove_duplicate=False))
    sites: dict[str, dict[str, list[ScaleSite]]] = defaultdict(lambda: defaultdict(list))
    originals = {node.name: node for node in graph.program.graph.nodes}
    for node in dense.graph.nodes:
        path = innermost(node)
        if node.op != "call_function" or not (path in widths or _fused(node)):
            continue
        push = push or FactorPush(dense)
        owner = type(modules.get(path, module)).__qualname__
        if _fused(node):
            site = _fused_site(graph, sizes, originals.get(node.name), node)
        else:
            site = _literal_site(node, widths[path], push)
        if site is not None:
            sites[owner][path].append(site)
    return [
        decision
        for owner, found in sites.items()
        if push is not None and (decision := _decision(owner, found, dense, push)) is not None
    ]


def apply_scales(dense: Program, decision: ScaleDecision) -> Callable[[], None]:
    """Let the dense program hold the scaled weights and scale by the new width; returns how to undo
    it."""
    tensors = {name: dense.tensors[name] for name in decision.weights}
    calls = [(site.node, site.node.args, site.node.kwargs) for site in decision.sites]

    def undo() -> None:
        dense.tensors.update(tensors)
        for node, args, kwargs in calls:
            node.args, node.kwargs = args, kwargs

    dense.tensors.update(decision.weights)
    for site in decision.sites:
        if _fused(site.node):
            site.node.update_kwarg("scale", site.scale)
        else:
            site.node.update_arg(1, site.scale)
    return undo


def _fused(node: fx.Node) -> bool:
    return op_name(node.target) == "aten::scaled_dot_product_attention"


def _contracted(graph: Graph, sizes: dict[Var, int]) -> dict[str, set[tuple[int, int]]]:
    """Per module path, (old, new) widths over which two activations are multiplied there or in a
    child."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for sink in graph.inference.sinks:
        old = resolve(sink.term).size
        new = width_of(sink.term, sizes)
        if sink.weight is None and old and new != old:
            path = innermost(sink.node)  # the product may be a module of its own
            for near in {path, path.rpartition(".")[0]}:
                found[near].add((old, new))
    return found


def _fused_site(
    graph: Graph, sizes: dict[Var, int], original: fx.Node | None, node: fx.Node
) -> ScaleSite | None:
    """Fused attention whose scale was left out, or is what its old head width implies."""
    if original is None:
        return None
    query, key = node.args[:2]
    term = graph.inference.terms[original.args[0]][-1]  # type: ignore[index]
    old, new = resolve(term).size, width_of(term, sizes)
    given = bound_arguments(original).get("scale")
    if not old or old == new or not isinstance(query, fx.Node) or not isinstance(key, fx.Node):
        return None
    if given is None:
        return ScaleSite(node, (query, key), math.sqrt(new / old), 1 / math.sqrt(new), True)
    power = _power_of(given, old)
    if power is None:
        return None
    change = (new / old) ** power
    return ScaleSite(node, (query, key), 1 / change, given * change, False)


def _literal_site(
    node: fx.Node, widths: set[tuple[int, int]], push: FactorPush
) -> ScaleSite | None:
    """A product or quotient by the square root of a width that changed. (The number may as well be
    an attribute that stays.)"""
    name = op_name(node.target).rstrip("_")
    if name not in ("aten::mul", "aten::div") or len(node.args) != 2:
        return None
    value, given = node.args
    number: Any = push.values.get(given) if isinstance(given, fx.Node) else given
    if not isinstance(value, fx.Node):
        return None
    for old, new in sorted(widths):
        power = _power_of(number, old)
        if power is not None:
            change = (new / old) ** power
            factor = change if name == "aten::div" else 1 / change
            return ScaleSite(node, (value,), factor, number * change, False)
    return None


def _power_of(number: Any, width: int) -> float | None:
    """The power of the width, or of a small multiple of it, that a number is."""
    if not isinstance(number, (int, float)) or number <= 0:
        return None
    for multiple in _MULTIPLES:
        for power in (0.5, -0.5, 0.25, -0.25):
            if math.isclose(number, (multiple * width) ** power, rel_tol=1e-6):
                return power
    return None


def _decision(
    owner: str, sites: Mapping[str, list[ScaleSite]], dense: Program, push: FactorPush
) -> ScaleDecision | None:
    """Scale all instances at once; None where some scale cannot be moved to weights."""
    ways: list[_Way] = []
    for own in sites.values():
        found = _ways(own, push)
        if found is None:
            return None
        ways += found
    try:
        factors = _pushed(ways, push)
    except CannotPush:
        return None
    weights = {name: scaled(dense.tensors[name], factor) for name, factor in factors.items()}
    values = {
        (known.rpartition(".")[0], known.rpartition(".")[2]): weight
        for name, weight in weights.items()
        for known in (name, *dense.aliases.get(name, ()))
    }
    chosen = tuple(site for own in sites.values() for site in own)
    sure = int(all(site.sure for site in chosen))
    return ScaleDecision(owner, ({}, values), sure, sure, chosen, factors, weights)


_Way = tuple[ScaleSite, fx.Node, frozenset[fx.Node]]  # the value scaled; products' second operands


def _ways(sites: list[ScaleSite], push: FactorPush) -> list[_Way] | None:
    """For the scales of one module, what takes each: the query's side before the key's (the query
    may be read elsewhere too). They are chosen together: two may share a projection."""
    options: list[list[_Way]] = []
    for site in sites:
        options.append([(site, value, frozenset()) for value in site.values])
        product = push.product(site.values[0])
        if product is not None:
            options[-1].append((site, site.values[0], frozenset((product,))))
    for ways in itertools.islice(itertools.product(*options), _COMBINATIONS):
        with contextlib.suppress(CannotPush):
            _pushed(list(ways), push)
            return list(ways)
    return None


def _pushed(ways: list[_Way], push: FactorPush) -> dict[str, Tensor]:
    second = frozenset().union(*(flipped for _, _, flipped in ways))
    return push.run([(value, site.node, site.factor) for site, value, _ in ways], second)
