"""The op table, and what a rule may do: state how the axes of one op relate.

A rule is a small function named after its op. It takes the context and the op's schema arguments it
needs, by name (`self` and `input` are both called `x`), and returns the terms of the result: a list
for one tensor, a tuple of lists for several. An op without a rule freezes what it touches.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from ..errors import RuleError
from ..ir.program import fake_value, is_symbolic, shape_of, source_line
from ..ir.terms import Fixed, Reason, Term, block, fresh, known_size, take, unify, variables
from ..ir.torch_private import argument_names, namespaces
from ..option_types import shown

SELECTION = "prunec_gather_"  # the index of a selection that prunec put into the graph
Terms = list[Term]
Axis = tuple[fx.Node, int]
RULES: dict[str, OpRule] = {}


class NodeRewriter(Protocol):
    """What a rewrite closure may do with the copied node of the smaller graph."""

    node: fx.Node

    def size(self, term: Term) -> int: ...
    def changed(self, term: Term) -> bool: ...
    def get(self, name: str) -> Any: ...
    def set(self, name: str, value: Any) -> None: ...
    def scale(self, value: Any, term: Term) -> Any: ...
    def select(self, axis: int, term: Term) -> None: ...
    def gather(self, axis: int, base: Term, index: Sequence[int]) -> None: ...


@dataclasses.dataclass(frozen=True)
class OpRule:
    """One row of the table."""

    op: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sink:
    """A node that contracts (or sums over) `term`: `operands` are the axes that carry the term,
    `weight` is the operand that is a weight, if one is."""

    node: fx.Node
    term: Term
    operands: tuple[Axis, ...]
    weight: fx.Node | None


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A node that takes a statistic over axes of its first operand: `term` is norm-coupled."""

    node: fx.Node
    term: Term
    reason: Reason


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Two activations multiplied and summed over `summed`: `left` and `right` are the axes that
    one of them has alone, `batch` those that both have and the result keeps."""

    summed: Term
    left: tuple[Term, ...]
    right: tuple[Term, ...]
    batch: tuple[Term, ...]


@dataclasses.dataclass(frozen=True)
class Gather:
    """A node that takes entries `index` from an axis of its first operand, whose term is `base`."""

    axis: int
    base: Term
    index: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What the values of a tensor say about `term`: which of its "entries", "counts" of those, one
    per entry, or "offsets", the sums of the counts up to each entry."""

    term: Term
    what: str = "entries"


def op_rule(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for ops named `namespace::name` (all overloads, in-place variants included).

    A later registration replaces an earlier one, so a user's rule wins over a built-in one.
    Raises RuleError when the function's first parameter is missing, an op name has no namespace, an
    op is none of its namespace, or a parameter is an argument of none of the ops.
    """
    if not ops or not all(isinstance(op, str) for op in ops):
        wrong = next((op for op in ops if not isinstance(op, str)), None)
        raise RuleError(
            f"op_rule takes the names of ops, as in @op_rule('aten::relu'), not "
            f"{'none' if wrong is None else shown(wrong)}."
        )

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise RuleError(f"a rule for {ops[0]} is a function, not {shown(function)}.")
        names = tuple(inspect.signature(function).parameters)
        if not names:
            raise RuleError(f"rule {function.__name__} needs the context as its first parameter.")
        for op in ops:
            if "::" not in op:
                raise RuleError(f"op '{op}' needs its namespace, as in 'aten::{op}'.")
        _check_arguments(function, ops, names[1:])
        RULES.update({op: OpRule(op, function, names[1:]) for op in ops})
        return function

    return register


def _check_arguments(function: Any, ops: Sequence[str], names: Sequence[str]) -> None:
    """Ops of namespaces that are not loaded yet are known when they are used."""
    loaded = {op: argument_names(op) for op in ops if op.partition("::")[0] in namespaces()}
    built_in = str(function.__module__).startswith(__name__.partition(".inference")[0])
    for op, arguments in loaded.items():
        if arguments is None and not built_in:  # built-in rules know ops of other torch versions
            raise RuleError(
                f"there is no op '{op}': check its name, or import what defines it before the rule."
            )
    known = {rule_name(name) for arguments in loaded.values() for name in arguments or ()}
    for name in names if len(loaded) == len(ops) and any(loaded.values()) else ():
        if name not in known:
            raise RuleError(
                f"rule {function.__name__} takes '{name}', which is no argument of "
                f"{' or '.join(ops)}: {'they have' if len(ops) > 1 else 'it has'} "
                f"{', '.join(sorted(known))}."
            )


def op_name(target: Any) -> str:
    """`namespace::name` of an op overload, '' for anything else."""
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def find_rule(target: Any) -> OpRule | None:
    """The rule of an op; an in-place op without one of its own takes its functional twin's."""
    name = op_name(target)
    rule = RULES.get(name)
    if rule is None and name.endswith("_") and not name.endswith("__"):
        rule = RULES.get(name[:-1])
    if rule is None and isinstance(target, torch._ops.OpOverload):
        if torch.Tag.pointwise in target.tags:  # torch's own statement, not a guess
            rule = RULES.get("prunec::pointwise")
    return rule


def rule_name(argument: str) -> str:
    """The name by which rules take an argument of an op's schema."""
    return "x" if argument in ("self", "input") else argument


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """The op's arguments by schema name, defaults filled in; `self` and `input` are called `x`."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    values: dict[str, Any] = {}
    for i, arg in enumerate(target._schema.arguments):
        if i < len(node.args):
            value = node.args[i]
        elif arg.name in node.kwargs:
            value = node.kwargs[arg.name]
        else:
            value = arg.default_value if arg.has_default_value() else None
        values[rule_name(arg.name)] = value
    return values


@dataclasses.dataclass
class Inference:
    """All that is known of a program after its rules have run.

    `beside`: terms of tensors that only side branches hold. `costs`: nodes with terms whose sizes
    multiply to its multiply-accumulates. `origins`: the weighted contractions
    (layers) a value comes from, without another in between. `chosen`: matrices that values choose
    from a tensor, for layers to use as weights. `constants`: integer values that do not
    depend on the model's inputs. `numbers`: values that number the entries of a term (a tuple of
    such, or None, for several results). `arranged`: values whose rows are in the order of such
    numbers. `tables`: values that stay whole, since each module that reads them selects from them.
    """

    terms: dict[fx.Node, Any] = dataclasses.field(default_factory=dict)
    tensors: dict[str, Terms] = dataclasses.field(default_factory=dict)
    beside: dict[str, Terms] = dataclasses.field(default_factory=dict)
    sinks: list[Sink] = dataclasses.field(default_factory=list)
    statistics: list[Statistic] = dataclasses.field(default_factory=list)
    roles: list[tuple[Term, str]] = dataclasses.field(default_factory=list)
    pairings: list[Pairing] = dataclasses.field(default_factory=list)
    minimums: list[tuple[Term, int]] = dataclasses.field(default_factory=list)
    costs: list[tuple[fx.Node, Terms]] = dataclasses.field(default_factory=list)
    rewrites: dict[fx.Node, list[Callable[[NodeRewriter], None]]] = dataclasses.field(
        default_factory=dict
    )
    generated: dict[fx.Node, Terms] = dataclasses.field(default_factory=dict)
    gathers: dict[fx.Node, Gather] = dataclasses.field(default_factory=dict)
    constants: dict[fx.Node, torch.Tensor] = dataclasses.field(default_factory=dict)
    numbers: dict[fx.Node, Any] = dataclasses.field(default_factory=dict)
    arranged: dict[fx.Node, Numbers] = dataclasses.field(default_factory=dict)
    tables: dict[fx.Node, Reason] = dataclasses.field(default_factory=dict)
    activations: set[fx.Node] = dataclasses.field(default_factory=set)
    chosen: set[fx.Node] = dataclasses.field(default_factory=set)
    origins: dict[fx.Node, frozenset[fx.Node]] = dataclasses.field(default_factory=dict)
    frozen: dict[fx.Node, Reason] = dataclasses.field(default_factory=dict)
    failures: dict[fx.Node, str] = dataclasses.field(default_factory=dict)


class RuleContext:
    """What a rule sees of one node, and the statements it can make about it."""

    def __init__(self, node: fx.Node, inference: Inference) -> None:
        self.node = node
        self.inference = inference
        self.value = fake_value(node)
        self.vouched: set[fx.Node] = set()

    # what is known

    @property
    def op(self) -> str:
        """The op's name without its namespace and in-place mark: `linear`, `add`."""
        return op_name(self.node.target).rpartition("::")[2].rstrip("_")

    def terms(self, x: Any) -> Terms:
        """The terms of a tensor argument, one per axis; [] for anything else."""
        found = self.inference.terms.get(x) if isinstance(x, fx.Node) else None
        return list(found) if isinstance(found, list) else []

    def shape(self, x: Any) -> list[int | None]:
        """The hinted shape of a tensor argument."""
        return shape_of(fake_value(x))

    @property
    def out_shape(self) -> list[int | None]:
        """The hinted shape of the result."""
        return shape_of(self.value)

    def symbolic(self, axis: int) -> bool:
        """Whether an axis of the result was left dynamic."""
        return is_symbolic(self.value.shape[axis])

    def constant(self, x: Any) -> torch.Tensor | None:
        """The value of an integer tensor that is the same on every call, if x is one."""
        return self.inference.constants.get(x)

    def addressed(self, index: Any, what: str = "entries") -> Term | None:
        """The term whose entries the values of a tensor number. Asking vouches for this use of
        them: that kept entries, renumbered, give the same."""
        numbers = self.inference.numbers.get(index)
        if not isinstance(numbers, Numbers) or numbers.what != what:
            return None
        self.vouched.add(index)
        return numbers.term

    def numbered(self, *results: Numbers | None) -> None:
        """The result's values (of each of several results) are numbers of entries."""
        self.inference.numbers[self.node] = results[0] if len(results) == 1 else results

    def is_activation(self, x: Any) -> bool:
        """Whether a value depends on the model's inputs (and not only on its tensors)."""
        return isinstance(x, fx.Node) and x in self.inference.activations

    def is_weight(self, x: Any) -> bool:
        """Whether a value is used as a layer's weight: of the model's tensors alone, or matrices
        chosen from them by value."""
        return not self.is_activation(x) or x in self.inference.chosen

    def reason(self, text: str) -> Reason:
        """A reason that points at this node and the user's line."""
        return Reason(text, self.node.name, source_line(self.node))

    # statements

    def unify(self, a: Term, b: Term, text: str = "") -> None:
        """The two terms are the same dimension(s)."""
        unify(a, b, self.reason(text or "misaligned dimensions meet"))

    def block(self, term: Term, text: str) -> None:
        """Nothing of this term may be pruned."""
        block(term, self.reason(text))

    def block_all(self, x: Any, text: str) -> None:
        """Nothing of this tensor may be pruned."""
        for term in self.terms(x):
            self.block(term, text)

    def fixed(self, size: int | None, text: str = "fixed by the op") -> Fixed:
        """An axis that may never change."""
        return Fixed(size, self.reason(text))

    def var(self, size: int) -> Term:
        """A new dimension."""
        return fresh(size)

    def statistic(self, term: Term, text: str) -> None:
        """The op takes a statistic over this term: removing entries changes what is left."""
        if variables(term):
            self.inference.statistics.append(Statistic(self.node, term, self.reason(text)))

    def contract(
        self,
        term: Term,
        operands: Sequence[Axis],
        out: Sequence[Term],
        weight: fx.Node | None = None,
        counted: bool = True,
    ) -> None:
        """The op multiplies and sums over this term; out terms x term is its number of MACs
        (`counted` False: another contraction of the same node has counted them)."""
        self.inference.sinks.append(Sink(self.node, term, tuple(operands), weight))
        if counted:
            self.inference.costs.append((self.node, [*out, term]))

    def role(self, term: Term, kind: str) -> None:
        """How a dimension is used: the source of its kind."""
        self.inference.roles.append((term, kind))

    def paired(
        self, summed: Term, left: Sequence[Term], right: Sequence[Term], batch: Sequence[Term]
    ) -> None:
        """Two activations meet in a contraction: attention, or one weighs the other."""
        self.inference.pairings.append(Pairing(summed, tuple(left), tuple(right), tuple(batch)))

    def at_least(self, term: Term, size: int) -> None:
        """Keep at least this many entries."""
        self.inference.minimums.append((term, size))

    def generated(self, terms: Terms) -> None:
        """The node makes values from sizes (arange): its constructor keeps its size, and kept
        entries are selected after it."""
        self.inference.generated[self.node] = terms

        def select(rw: NodeRewriter) -> None:
            for axis, term in enumerate(terms):
                if rw.changed(term):
                    rw.select(axis, term)

        self.on_rewrite(select)

    def gathered(self, axis: int, base: Term, index: Sequence[int]) -> Term:
        """The term of entries `index` taken from an axis of the first operand; the node becomes an
        index_select of those that stay."""
        found = take(base, index, self.reason("one of them has to stay"))
        gather = Gather(axis, base, tuple(index))
        self.inference.gathers[self.node] = gather

        def action(rw: NodeRewriter) -> None:
            if rw.changed(base):
                rw.gather(axis, base, gather.index)

        self.on_rewrite(action)
        return found

    def on_rewrite(self, action: Callable[[NodeRewriter], None]) -> None:
        """Run `action` on the node's copy in the smaller graph."""
        self.inference.rewrites.setdefault(self.node, []).append(action)

    def resize(self, argument: str, terms: Sequence[Term]) -> None:
        """The list argument holds sizes, one per term: rewrite those whose term shrinks."""

        def action(rw: NodeRewriter) -> None:
            sizes = list(rw.get(argument))
            offset = len(sizes) - len(terms)
            for i, term in enumerate(terms):
                if rw.changed(term) and i + offset >= 0:
                    sizes[i + offset] = rw.scale(sizes[i + offset], term)
            if sizes != list(rw.get(argument)):
                rw.set(argument, sizes)

        self.on_rewrite(action)

    def resize_scalar(self, argument: str, term: Term) -> None:
        """The integer argument is the size of a term."""

        def action(rw: NodeRewriter) -> None:
            if rw.changed(term):
                rw.set(argument, rw.scale(rw.get(argument), term))

        self.on_rewrite(action)

    # shorthands

    def axis(self, dim: int, rank: int) -> int:
        """A non-negative axis index."""
        return dim + rank if dim < 0 else dim

    def frozen_result(self, text: str) -> Any:
        """Fixed terms for every axis of every result."""
        self.inference.frozen[self.node] = self.reason(text)
        return fixed_terms(self.value, self.reason(text))


def fixed_terms(value: Any, reason: Reason) -> Any:
    """Fixed terms shaped like a value: a list for a tensor, a tuple for several, None otherwise."""
    if isinstance(value, torch.Tensor):
        return [Fixed(size, reason) for size in shape_of(value)]
    if isinstance(value, (tuple, list)):
        return tuple(fixed_terms(v, reason) for v in value)
    return None


def consistent(terms: Any, value: Any) -> bool:
    """Whether terms fit a value: as many as it has axes, each of the axis's size."""
    if isinstance(value, torch.Tensor):
        if not isinstance(terms, list) or len(terms) != value.dim():
            return False
        return all(
            s is None or t.size == s or (t.size is None and known_size(t) == 0)
            for t, s in zip(terms, shape_of(value), strict=True)
        )
    if isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value):
        return (
            isinstance(terms, tuple)
            and len(terms) == len(value)
            and all(map(consistent, terms, value))
        )
    return True
