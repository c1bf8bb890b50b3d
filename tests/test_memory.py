"""What an op writes to is said by its schema: all operands, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F
from nets import TOKENS, module
from torch import Tensor, fx, nn

from prunec import compiler
from prunec.compiler.inference.constants import integer_constants
from prunec.compiler.ir.memory import memory_owners, written
from prunec.compiler.rewrite.known_values import known_values

aten = torch.ops.aten


def call(target: Any, *names: str, **kwargs: Any) -> tuple[fx.Node, fx.Graph]:
    """A node whose operands are placeholders of these names; other arguments as given."""
    graph = fx.Graph()
    made = {name: graph.placeholder(name) for name in names}
    places = [a.name for a in target._schema.arguments if not a.kwarg_only]
    args = [made.get(name, kwargs.get(name)) for name in places]
    out = {name: made[name] for name in names if name not in places}
    return graph.call_function(target, tuple(args), out), graph


STATISTICS = ("input", "running_mean", "running_var")


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (call(aten.add_.Tensor, "self", "other"), {"self"}),
        (call(aten.add.Tensor, "self", "other"), set()),
        (call(aten.add.out, "self", "other", "out"), {"out"}),
        (call(aten.aminmax.out, "self", "min", "max"), {"min", "max"}),
        (call(aten.batch_norm.default, *STATISTICS, training=True), set(STATISTICS[1:])),
        (call(aten.batch_norm.default, *STATISTICS, training=False), set()),
        (call(aten._native_batch_norm_legit.default, *STATISTICS), set(STATISTICS[1:])),
        (
            call(
                aten.fused_moving_avg_obs_fake_quant.default,
                *("self", "observer_on", "running_min", "running_max", "scale", "zero_point"),
            ),
            {"running_min", "running_max", "scale", "zero_point"},
        ),
        (call(aten._foreach_add_.Scalar, "self"), {"self"}),
    ],
)
def test_all_operands_that_an_op_writes_to_are_named(
    made: tuple[fx.Node, fx.Graph], names: set[str]
) -> None:
    assert {x.name for x in written(made[0])} == {
        n.name for n in made[1].nodes if n.target in names
    }


def test_a_result_that_is_written_into_out_is_the_memory_of_out() -> None:
    node, graph = call(aten.add.out, "self", "other", "out")
    owners = memory_owners(graph)
    assert owners[node].target == "out"


class Observed(nn.Module):
    """A number that an observer changes in place, as an operand that is not its first."""

    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("on", torch.ones(1, dtype=torch.long))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fused_moving_avg_obs_fake_quant(
            *(self.stem(x), self.on, self.on, self.low, self.high, self.scale, self.zero),
            *(0.5, 0, 255, -1, False, False),
        )
        return self.head(x) + self.zero + self.scale


def test_what_an_observer_writes_is_no_constant_and_is_not_known() -> None:
    model = Observed().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = compiler.capture(model, (TOKENS,)).program
    numbers = [n for n in integer_constants(program) if n.target == "zero"]
    assert numbers == []
    nodes = {n.target: n for n in program.graph.nodes if n.op == "get_attr"}
    known = known_values(program, lambda _, tensor: tensor)
    assert known.get(nodes["on"]) is not None
    assert [known.get(nodes[name]) for name in ("low", "high", "scale", "zero")] == [None] * 4
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_knowing_values_writes_to_no_tensor_of_the_model() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        normed = F.batch_norm(self.table, self.mean, self.var, training=True)
        return self.head(x) + self.mean.sum() + normed.sum()

    model = module(forward, head=nn.Linear(8, 3), table=nn.Parameter(torch.randn(9, 4)))
    model.register_buffer("mean", torch.zeros(4))
    model.register_buffer("var", torch.ones(4))
    program = compiler.capture(model.eval(), (TOKENS,)).program
    known = known_values(program, lambda _, tensor: tensor)
    assert not any(model.get_buffer("mean"))
    assert all(known.get(n) is None for n in program.graph.nodes if n.target == "mean")


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_a_net_prepared_for_quantisation_is_blocked_with_the_remedy(backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).train()
    model.qconfig = quantization.get_default_qat_qconfig(backend)  # type: ignore[assignment]
    prepared = quantization.prepare_qat(model)
    prepared(torch.randn(2, 3, 9, 9))
    graph = compiler.capture(prepared.eval(), (torch.randn(2, 3, 9, 9),))
    assert not graph.prunable
    reasons = {d.blocked.text for d in graph.dimensions.values() if d.blocked}
    assert any("prune the float model first" in text for text in reasons)
    assert not any("no rule" in text for text in reasons)
